"""The transformer of LLaDA, which MMaDA and Lumina-DiMOO share: it loads their published checkpoints.

RMSNorm, rotary positions, SwiGLU, no causal mask. The code is new; the parameter names are the published ones, so
that adapters and merged weights fit the authors' classes. Two things are ours: padding can be hidden from every
position, and the output head is evaluated only at the positions, and for the vocabulary rows, that are asked for.
There is no dropout: log-probabilities are compared, and the published models have none.

U rows, S sequence positions, D width, V' head rows, M positions.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from htgrpo_ext.errors import UserError

# What the published models have and we have written; another value in config.json would mean another network.
ONLY = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "block_group_size": 1,
    "attention_layer_norm": False,
    "layer_norm_with_affine": True,
    "input_emb_norm": False,
    "scale_logits": False,
}
NEEDED = ("d_model", "n_heads", "n_layers", "vocab_size", *list(ONLY)[:4])  # their defaults would be another network


# LLaDA-8B's published sizes, for a plan before anything is downloaded; MMaDA and Lumina-DiMOO are made from it.
LLADA_8B: dict[str, Any] = dict(
    d_model=4096,
    n_heads=32,
    n_kv_heads=32,
    n_layers=32,
    mlp_hidden_size=12288,
    vocab_size=134656,
    embedding_size=134656,
    weight_tying=False,
)


class LladaConfig(PretrainedConfig):
    """The keys of a published config.json, with the defaults that its authors' configuration class has."""

    model_type = "llada"

    def __init__(
        self,
        d_model: int = 768,
        n_heads: int = 12,
        n_kv_heads: int | None = None,
        n_layers: int = 12,
        mlp_ratio: int = 4,
        mlp_hidden_size: int | None = None,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 10_000.0,
        rope_full_precision: bool = True,
        include_bias: bool = False,
        include_qkv_bias: bool | None = False,
        bias_for_layer_norm: bool | None = None,
        multi_query_attention: bool | None = None,
        vocab_size: int = 50_257,
        embedding_size: int | None = None,
        weight_tying: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.d_model, self.n_heads, self.n_kv_heads, self.n_layers = d_model, n_heads, n_kv_heads, n_layers
        self.mlp_ratio, self.mlp_hidden_size = mlp_ratio, mlp_hidden_size
        self.rms_norm_eps, self.rope_theta, self.rope_full_precision = rms_norm_eps, rope_theta, rope_full_precision
        self.include_bias, self.include_qkv_bias = include_bias, include_qkv_bias
        self.bias_for_layer_norm, self.multi_query_attention = bias_for_layer_norm, multi_query_attention
        self.vocab_size, self.embedding_size, self.weight_tying = vocab_size, embedding_size, weight_tying

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


def read_config(folder: Path) -> LladaConfig:
    """The config.json of a checkpoint folder.

    Raises UserError if there is none, if a key is missing, or if it describes a network that is not written here.
    """
    file = folder / "config.json"
    try:
        keys = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: no checkpoint there (config.json is missing)") from None
    except ValueError:
        raise UserError(f"{file}: not valid JSON") from None
    wrong = [f"{file}: `{key}` is missing" for key in NEEDED if key not in keys]
    wrong += [
        f"{file}: {key} {keys[key]!r} is not supported (only {value!r})"
        for key, value in ONLY.items()
        if keys.get(key, value) != value
    ]
    keys.pop("model_type", None)  # "mmada" or "llada", for the same network
    if wrong:
        raise UserError("\n".join(wrong))
    config = LladaConfig(**keys)
    if config.d_model % config.n_heads or config.n_heads % config.kv_heads:
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
    """Turn the two halves of each head [U, heads, S, head_width] against each other; in float32 if so configured."""
    y = x.float() if full_precision else x
    a, b = y.chunk(2, dim=-1)
    return (y * cos.to(y.dtype) + torch.cat([-b, a], dim=-1) * sin.to(y.dtype)).to(x.dtype)


class LladaNorm(nn.Module):
    """RMSNorm in float32, rounded to the input's type before the weight, as the published models have it."""

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

    def forward(self, x: Tensor, key_mask: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (-1, self.config.head_width)).transpose(1, 2)

        h = self.attn_norm(x)
        full = self.config.rope_full_precision
        q, k = (rotate(heads(proj(h)), cos, sin, full) for proj in (self.q_proj, self.k_proj))
        v = heads(self.v_proj(h))
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
    # A tied checkpoint may hold the embedding a second time, under the head's name.
    _keys_to_ignore_on_load_unexpected = [r"^model\.transformer\.ff_out\."]
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
        """Sizes that let every part of a random model matter: for tests, never for training."""
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
    ) -> CausalLMOutput:
        """Logits where they are wanted.

        input_ids       int64 [U, S]
        attention_mask  bool [U, S], False where no position may look; None: every position sees every other
        positions       bool [U, S], where logits are wanted; None: everywhere
        head_rows       rows of the vocabulary, V' of them
        position_ids    int64 [S] or [U, S], places for the rotary embedding; None: 0, 1, 2, ..
        Returns         logits [M, V'], row-major over `positions`; [U, S, V'] when it is None
        """
        transformer: Any = self.model["transformer"]
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        cos, sin = rotary_tables(self.config, position_ids)
        # Without a pad there is nothing to hide, and attention kernels are faster without a mask.
        key_mask = None
        if attention_mask is not None and not bool(attention_mask.all()):
            key_mask = attention_mask[:, None, None, :]
        x = transformer["wte"](input_ids)
        for block in transformer["blocks"]:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, key_mask, cos, sin, use_reentrant=False)
            else:
                x = block(x, key_mask, cos, sin)
        x = transformer["ln_f"](x if positions is None else x[positions])
        if self.config.weight_tying:
            logits: Any = F.linear(x, transformer["wte"].weight[head_rows])
        else:
            logits = transformer["ff_out"](x, head_rows)
        return CausalLMOutput(logits=logits)


def load_llada(folder: Path, dtype: torch.dtype) -> LladaModel:
    """The model of a checkpoint folder: config.json and safetensors, in one file or in shards with their index.

    Raises UserError if the weights are missing, do not fit config.json, or are not all there.
    """
    config = read_config(folder)
    options: Any = dict(config=config, torch_dtype=dtype, low_cpu_mem_usage=True, output_loading_info=True)
    try:
        loaded: Any = LladaModel.from_pretrained(folder, **options)
        model, found = loaded
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: the weights cannot be loaded ({str(error).splitlines()[0]})") from None
    # Weights that no file holds are left without storage, and are not always reported.
    missing = {*found["missing_keys"], *(name for name, p in model.named_parameters() if p.is_meta)}
    for what, keys in (("missing", sorted(missing)), ("unexpected", sorted(found["unexpected_keys"]))):
        if keys:
            raise UserError(f"{folder}: {len(keys)} weights are {what}, {keys[0]} among them")
    return model
