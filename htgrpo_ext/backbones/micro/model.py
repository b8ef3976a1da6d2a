"""A masked-diffusion transformer of about one million parameters, of the same kind as LLaDA.

RMSNorm, rotary positions, SwiGLU, no biases, no causal mask; one vocabulary for words, image codes and the
mask. Rotary positions are two-dimensional: half of each head rotates with the row, half with the column. The word
at place i has position (i, i), image token (r, c) has (L + r, L + c).

B rows, S = L + N sequence positions, L prompt tokens, N image tokens, D width, V' head rows, M positions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from htgrpo_ext.backbones.wanted import Keep, at_places, computed_positions, keepers, wanted_positions
from htgrpo_ext.core.kept import Kept


class MicroConfig(PretrainedConfig):
    """Sizes of the model; in the vocabulary, `codebook_size` image codes follow `num_text_tokens` words."""

    model_type = "htgrpo-micro"

    def __init__(
        self,
        num_text_tokens: int = 64,
        codebook_size: int = 440,
        prompt_length: int = 14,
        grid: int = 8,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        ffn_size: int = 400,
        rope_base: float = 100.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_text_tokens = num_text_tokens
        self.codebook_size = codebook_size
        self.prompt_length = prompt_length
        self.grid = grid
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.ffn_size = ffn_size
        self.rope_base = rope_base

    def positions(self) -> Tensor:
        """Row and column of every place in the sequence, words first, for rotary positions. [S, 2]"""
        text = torch.arange(self.prompt_length, device="cpu")
        cell = torch.arange(self.grid, device="cpu") + self.prompt_length
        image = torch.cartesian_prod(cell, cell)
        return torch.cat([text[:, None].expand(-1, 2), image])

    @property
    def image_offset(self) -> int:
        """Id of image code 0."""
        return self.num_text_tokens

    @property
    def mask_id(self) -> int:
        return self.num_text_tokens + self.codebook_size

    @property
    def vocab_size(self) -> int:
        return self.mask_id + 1


def rotary_tables(config: MicroConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [S, D], of the rotation angle of each feature; sines with the sign of `rotate`."""
    rows, columns = config.positions().unbind(1)
    quarter = config.hidden_size // config.num_heads // 4
    frequencies = config.rope_base ** (-torch.arange(quarter, device="cpu") / quarter)
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    tables = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    return tables[0].repeat(1, config.num_heads), tables[1].repeat(1, config.num_heads)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
    """Rotate the two halves (a, b) of each head in [B, S, D]: (a cos - b sin, b cos + a sin).

    All heads at once, as rows of D numbers: on a CPU five times faster than head by head, and the same numbers.
    """
    a, b = x.unflatten(-1, (num_heads, -1)).chunk(2, dim=-1)
    return x * cos + torch.cat([b, a], dim=-1).flatten(-2) * sin


class MicroBlock(nn.Module):
    def __init__(self, config: MicroConfig):
        super().__init__()
        width, ffn = config.hidden_size, config.ffn_size
        self.num_heads = config.num_heads
        self.attn_norm = nn.RMSNorm(width, eps=1e-6)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = nn.RMSNorm(width, eps=1e-6)
        self.ff_proj = nn.Linear(width, ffn, bias=False)
        self.up_proj = nn.Linear(width, ffn, bias=False)
        self.ff_out = nn.Linear(ffn, width, bias=False)

    def forward(
        self,
        x: Tensor,
        key_mask: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        place_BQ: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """[B, S, D], or [B, Q, D] at the given places alone. `keep` adds the keys and values that `x` is without."""

        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        h = self.attn_norm(x)
        asked, at_cos, at_sin = h, cos, sin
        if place_BQ is not None:
            x, asked = at_places(x, place_BQ), at_places(h, place_BQ)
            at_cos, at_sin = (t[place_BQ] if t.dim() == 2 else at_places(t, place_BQ) for t in (cos, sin))
        q = heads(rotate(self.q_proj(asked), at_cos, at_sin, self.num_heads))
        k, v = heads(rotate(self.k_proj(h), cos, sin, self.num_heads)), heads(self.v_proj(h))
        if keep is not None:
            k, v = keep(k, v)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        x = x + self.attn_out(attended.transpose(1, 2).flatten(-2))
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class MicroModel(PreTrainedModel):
    """The transformer, with a head over the codebook."""

    config: MicroConfig
    config_class = MicroConfig
    base_model_prefix = "model"

    def __init__(self, config: MicroConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(MicroBlock(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.lm_head = nn.Linear(config.hidden_size, config.codebook_size, bias=False)
        # Not saved, and on the CPU even while a checkpoint is loaded.
        self._rotary = rotary_tables(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            module.weight.data.normal_(0.0, 0.5)
        elif isinstance(module, nn.Linear):
            module.weight.data.normal_(0.0, module.in_features**-0.5)
            if module.out_features == self.config.hidden_size:  # half the size: the residual stream adds many
                module.weight.data.mul_(0.5)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        positions: Tensor | None = None,
        kept: Kept | None = None,
        computed: Tensor | None = None,
    ) -> CausalLMOutput:
        """Logits over the codebook; the head has no rows for words, because prompts are never predicted.

        input_ids       int64 [B, S]
        attention_mask  bool [B, S], False at positions that are hidden from all
        positions       bool [B, S], where logits are wanted; None: at every image token
        kept            keys and values that this call keeps, or reads
        computed        bool [B, S], the positions that are computed, when those of the others are kept
        Returns         logits [M, V], row-major over `positions`; [B, N, V] when it is None
        """
        cos, sin = (table.to(self.embedding.weight, non_blocking=True) for table in self._rotary)
        place_BQ, length = None, input_ids.shape[1]
        if computed is not None and positions is not None:
            place_BQ, positions = computed_positions(computed, positions, input_ids.device)
            input_ids, cos, sin = input_ids.gather(1, place_BQ), cos[place_BQ], sin[place_BQ]
        x = self.embedding(input_ids)
        key_mask = attention_mask.to(x.device, non_blocking=True)[:, None, None, :]
        wanted = None if positions is None else wanted_positions(positions, x.device)
        *blocks, last = zip(self.blocks, keepers(kept, place_BQ, length, len(self.blocks)), strict=True)
        for block, keep in blocks:
            x = block(x, key_mask, cos, sin, keep=keep)
        x = last[0](x, key_mask, cos, sin, wanted and wanted.place_UQ, last[1])
        if wanted is not None:
            x = x.flatten(0, 1)[wanted.slot_M]
        else:
            x = x[:, self.config.prompt_length :] if positions is None else x[positions]
        logits: Any = self.lm_head(self.norm(x))
        return CausalLMOutput(logits=logits)
