"""The transformer of LLaDA, which MMaDA and Lumina-DiMOO share: it loads their published checkpoints.

RMSNorm, rotary positions, SwiGLU, no causal mask. The code is new; the parameter names are the published ones, so
that adapters and merged weights fit the authors' classes. Two things are ours: padding can be hidden from every
position, and the output head is evaluated only at the positions, and for the vocabulary rows, that are asked for.
There is no dropout: log-probabilities are compared, and the published models have none.

U rows, S sequence positions, D width, V' head rows, M positions.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from htgrpo_ext.backbones.checkpoints import (
    Layers,
    Positive,
    Size,
    check_weights,
    checked,
    load_weights,
    read_json,
    read_tensors,
    refuse_non_finite,
)
from htgrpo_ext.backbones.wanted import Keep, at_places, computed_positions, keepers, wanted_positions
from htgrpo_ext.core.kept import Kept
from htgrpo_ext.errors import UserError, one_line


class LladaKeys(BaseModel):
    """What is read of a published config.json, with the defaults of its authors' configuration class.

    A key without a default has to be there: its default is not what was published. A key with one allowed value is a
    choice of the published models; other values mean a network that is not implemented.
    """

    block_type: Literal["llama"]
    activation_type: Literal["silu"]
    layer_norm_type: Literal["rms"]
    rope: Literal[True]
    alibi: Literal[False] = False
    block_group_size: Literal[1] = 1
    attention_layer_norm: Literal[False] = False
    layer_norm_with_affine: Literal[True] = True
    input_emb_norm: Literal[False] = False
    scale_logits: Literal[False] = False
    d_model: Size
    n_heads: Size
    n_kv_heads: Size | None = None
    n_layers: Layers
    mlp_ratio: Size = 4
    mlp_hidden_size: Size | None = None
    rms_norm_eps: Positive
    rope_theta: Positive
    rope_full_precision: bool = True
    include_bias: bool = False
    include_qkv_bias: bool | None = False
    bias_for_layer_norm: bool | None = None
    multi_query_attention: bool | None = None
    vocab_size: Size
    embedding_size: Size | None = None
    weight_tying: bool


class LladaConfig(PretrainedConfig):
    """`LladaKeys`, and whatever else a published config.json holds."""

    model_type = "llada"

    @property
    def head_width(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        if self.n_kv_heads is None:
            return 1 if self.multi_query_attention else self.n_heads
        return self.n_kv_heads

    @property
    def ffn_width(self) -> int:
        return self.mlp_hidden_size or self.mlp_ratio * self.d_model

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the embedding and of the output head."""
        return self.embedding_size or self.vocab_size


# LLaDA-8B's published keys, for a plan before anything is downloaded; MMaDA and Lumina-DiMOO are built on it.
LLADA_8B = LladaKeys(
    block_type="llama",
    activation_type="silu",
    layer_norm_type="rms",
    rope=True,
    d_model=4096,
    n_heads=32,
    n_layers=32,
    mlp_hidden_size=12288,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    vocab_size=134656,
    weight_tying=False,
)


def read_config(folder: Path) -> LladaConfig:
    """The config.json of a checkpoint folder.

    Raises UserError if there is none, if a key is missing, or if it describes a network that is not implemented.
    """
    file = folder / "config.json"
    if not file.exists():
        raise UserError(f"{folder}: no checkpoint there (config.json is missing)")
    keys = read_json(file)
    known = checked(keys, LladaKeys, file)
    keys.pop("model_type", None)  # "mmada" or "llada", for the same network
    try:
        config = LladaConfig(**keys | known)
    except Exception as error:  # transformers reads keys of its own, and trusts them
        raise UserError(f"{file}: cannot be used ({one_line(error)})") from None
    if config.d_model % (2 * config.n_heads) or config.n_heads % config.kv_heads:
        sizes = f"d_model {config.d_model}, n_heads {config.n_heads}, key and value heads {config.kv_heads}"
        raise UserError(f"{file}: heads do not divide evenly ({sizes})")
    return config


def rotary_tables(config: LladaConfig, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [.., 1, S, head_width]: one entry per position, the same for every head."""
    width = config.head_width
    exponents = torch.arange(0, width, 2, device=position_ids.device, dtype=torch.float32) / width
    angles = position_ids[..., None].float() * (1.0 / config.rope_theta**exponents)
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(-3)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, full_precision: bool) -> Tensor:
    """Rotate the two halves of each head [U, heads, S, head_width]; in float32 if `full_precision`."""
    y = x.float() if full_precision else x
    a, b = y.chunk(2, dim=-1)
    return (y * cos.to(y.dtype) + torch.cat([-b, a], dim=-1) * sin.to(y.dtype)).to(x.dtype)


class LladaNorm(nn.Module):
    """RMSNorm in float32, rounded to the input's type before the weight, as in the published models."""

    def __init__(self, config: LladaConfig):
        super().__init__()
        self.eps = config.rms_norm_eps
        self.weight = nn.Parameter(torch.ones(config.d_model))
        biased = config.include_bias if config.bias_for_layer_norm is None else config.bias_for_layer_norm
        self.bias = nn.Parameter(torch.zeros(config.d_model)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight
        return y if self.bias is None else y + self.bias


class LladaHead(nn.Linear):
    """The output head, for some rows of the vocabulary; a module's own forward, so that ZeRO gathers its weight."""

    def forward(self, input: Tensor, rows: slice = slice(None)) -> Tensor:
        return F.linear(input, self.weight[rows], None if self.bias is None else self.bias[rows])


class LladaBlock(nn.Module):
    def __init__(self, config: LladaConfig):
        super().__init__()
        self.config = config
        width, kv_width, ffn = config.d_model, config.kv_heads * config.head_width, config.ffn_width
        bias, qkv_bias = config.include_bias, config.include_bias or bool(config.include_qkv_bias)
        self.attn_norm = LladaNorm(config)
        self.q_proj = nn.Linear(width, width, bias=qkv_bias)
        self.k_proj = nn.Linear(width, kv_width, bias=qkv_bias)
        self.v_proj = nn.Linear(width, kv_width, bias=qkv_bias)
        self.attn_out = nn.Linear(width, width, bias=bias)
        self.ff_norm = LladaNorm(config)
        self.ff_proj = nn.Linear(width, ffn, bias=bias)
        self.up_proj = nn.Linear(width, ffn, bias=bias)
        self.ff_out = nn.Linear(ffn, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        key_mask: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        place_UQ: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """[U, S, D], or [U, Q, D] at the given places alone. `keep` adds the keys and values that `x` is without."""

        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (-1, self.config.head_width)).transpose(1, 2)

        h = self.attn_norm(x)
        full = self.config.rope_full_precision
        asked, at_cos, at_sin = h, cos, sin
        if place_UQ is not None:
            x, asked = at_places(x, place_UQ), at_places(h, place_UQ)
            at_cos, at_sin = (at_places(t.expand(len(x), 1, -1, -1)[:, 0], place_UQ)[:, None] for t in (cos, sin))
        q = rotate(heads(self.q_proj(asked)), at_cos, at_sin, full)
        k, v = rotate(heads(self.k_proj(h)), cos, sin, full), heads(self.v_proj(h))
        if keep is not None:
            k, v = keep(k, v)
        if (groups := self.config.n_heads // self.config.kv_heads) > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        x = x + self.attn_out(attended.transpose(1, 2).flatten(-2))
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))


class LladaModel(PreTrainedModel):
    """The transformer and its head. `activation_checkpointing` recomputes each block in the backward pass."""

    config: LladaConfig
    model: nn.ModuleDict

    config_class = LladaConfig
    base_model_prefix = "model"
    activation_checkpointing = False

    def __init__(self, config: LladaConfig):
        super().__init__(config)
        rows = config.vocabulary_rows
        transformer = {
            "wte": nn.Embedding(rows, config.d_model),
            "blocks": nn.ModuleList(LladaBlock(config) for _ in range(config.n_layers)),
            "ln_f": LladaNorm(config),
        }
        if not config.weight_tying:
            transformer["ff_out"] = LladaHead(config.d_model, rows, bias=config.include_bias)
        self.model = nn.ModuleDict({"transformer": nn.ModuleDict(transformer)})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights of a random model in which every part has an effect: for tests, never for training."""
        if isinstance(module, nn.Embedding):
            module.weight.data.normal_()
        elif isinstance(module, nn.Linear):
            module.weight.data.normal_(0.0, module.in_features**-0.5)
            if module.bias is not None:
                module.bias.data.normal_(0.0, 0.1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        head_rows: slice = slice(None),
        position_ids: Tensor | None = None,
        kept: Kept | None = None,
        computed: Tensor | None = None,
    ) -> CausalLMOutput:
        """Logits at the wanted positions.

        input_ids       int64 [U, S]
        attention_mask  bool [U, S], False at positions that are hidden from all; None: nothing is hidden
        positions       bool [U, S], where logits are wanted; None: everywhere. Both masks may be on the CPU: then
                        nothing here waits for the device
        head_rows       rows of the vocabulary, V' of them
        position_ids    int64 [S] or [U, S], places for the rotary embedding; None: 0, 1, 2, ..
        kept            keys and values that this call keeps, or reads
        computed        bool [U, S], the positions that are computed, when those of the others are kept
        Returns         logits [M, V'], row-major over `positions`; [U, S, V'] when it is None
        """
        transformer: Any = self.model["transformer"]
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        place_UQ, length = None, input_ids.shape[1]
        if computed is not None and positions is not None:
            place_UQ, positions = computed_positions(computed, positions, input_ids.device)
            position_ids = position_ids.expand(len(input_ids), -1).gather(1, place_UQ)
            input_ids = input_ids.gather(1, place_UQ)
        cos, sin = rotary_tables(self.config, position_ids)
        key_mask = None
        if attention_mask is not None and not bool(attention_mask.all()):  # attention is faster without a mask
            key_mask = attention_mask.to(input_ids.device, non_blocking=True)[:, None, None, :]
        wanted = None if positions is None else wanted_positions(positions, input_ids.device)
        x = transformer["wte"](input_ids)
        blocks = transformer["blocks"]
        for block, keep in zip(blocks, keepers(kept, place_UQ, length, len(blocks)), strict=True):
            if self.activation_checkpointing and torch.is_grad_enabled():
                # Nothing in a block is random, so no generator's state is kept.
                x = checkpoint(block, x, key_mask, cos, sin, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, key_mask, cos, sin, wanted.place_UQ if wanted and block is blocks[-1] else None, keep)
        if wanted is not None:
            x = x.flatten(0, 1)[wanted.slot_M]
        elif positions is not None:
            x = x[positions]
        x = transformer["ln_f"](x)
        if self.config.weight_tying:
            logits: Any = F.linear(x, transformer["wte"].weight[head_rows])
        else:
            logits = transformer["ff_out"](x, head_rows)
        return CausalLMOutput(logits=logits)


def _without_weights(folder: Path) -> tuple[LladaModel, dict[str, str]]:
    """The model that config.json describes, on the meta device, and the weights that a file may hold twice."""
    config = read_config(folder)
    config.name_or_path = str(folder)
    with torch.device("meta"):
        model = LladaModel(config)
    head, embedding = "model.transformer.ff_out.weight", "model.transformer.wte.weight"
    return model, {head: embedding} if config.weight_tying else {}


def load_llada(folder: Path, dtype: torch.dtype) -> LladaModel:
    """The model of a checkpoint folder: config.json and safetensors, in one file or in shards with their index.

    Raises UserError unless the weights are those that config.json describes, and finite.
    """
    model, copies = _without_weights(folder)
    return load_weights(model, folder, dtype, copies)


def check_llada(folder: Path) -> None:
    """Raises UserError for a checkpoint that `load_llada` refuses; for models that other code loads."""
    model, copies = _without_weights(folder)
    for file in check_weights(model, folder, copies):
        for name, tensor in read_tensors(file):
            refuse_non_finite(name, tensor, file)
