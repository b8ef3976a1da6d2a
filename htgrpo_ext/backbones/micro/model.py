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
    """Cosines and sines, float32 [S, head_dim / 2], of the rotation angle of each pair of features."""
    rows, columns = config.positions().unbind(1)
    quarter = config.hidden_size // config.num_heads // 4
    frequencies = config.rope_base ** (-torch.arange(quarter, device="cpu") / quarter)
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head [..., S, head_dim]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


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

    def forward(self, x: Tensor, key_mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        h = self.attn_norm(x)
        q, k = (rotate(heads(proj(h)), cos, sin) for proj in (self.q_proj, self.k_proj))
        attended = F.scaled_dot_product_attention(q, k, heads(self.v_proj(h)), attn_mask=key_mask)
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

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor | None = None) -> CausalLMOutput:
        """Logits over the codebook; the head has no rows for words, because prompts are never predicted.

        input_ids       int64 [B, S]
        attention_mask  bool [B, S], False at positions that are hidden from all
        positions       bool [B, S], where logits are wanted; None: at every image token
        Returns         logits [M, V], row-major over `positions`; [B, N, V] when it is None
        """
        cos, sin = (table.to(self.embedding.weight) for table in self._rotary)
        x = self.embedding(input_ids)
        key_mask = attention_mask[:, None, None, :]
        for block in self.blocks:
            x = block(x, key_mask, cos, sin)
        x = x[:, self.config.prompt_length :] if positions is None else x[positions]
        logits: Any = self.lm_head(self.norm(x))
        return CausalLMOutput(logits=logits)
