"""LoRA adapters as files: read one, add it to a model's weights, or write a checkpoint that contains it.

A weight W of the base model becomes W + alpha/r B A, computed in float32 and rounded once to the type of W.
"""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from htgrpo_ext.errors import UserError

PREFIX = "base_model.model."  # peft's, before the name that a weight has without it
PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False}


class LowRank(NamedTuple):
    """The change of one weight [out, in]."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        a, b = (t.to(weight.device, torch.float32) for t in (self.a, self.b))
        return (weight.float() + self.scale * (b @ a)).to(weight.dtype)


def read_adapter(folder: Path) -> dict[str, LowRank]:
    """The change of each weight in an adapter folder, by the weight's name in the base model.

    Raises UserError if there is no adapter, or if it is not plain LoRA.
    """
    file = folder / "adapter_config.json"
    if not file.is_file() or not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{folder}: no adapter there (adapter_config.json and adapter_model.safetensors; "
            "a run has them in checkpoints/cycle-NNNNNN/model and in model)"
        )
    config = json.loads(file.read_text())
    odd = [key for key, value in PLAIN.items() if config.get(key, value) != value]
    odd += [key for key in ("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication") if config.get(key)]
    if odd:
        raise UserError(f"{file}: `{odd[0]}` is {config[odd[0]]!r}; only plain LoRA can be folded in")
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    changes = {}
    for key, a in tensors.items():
        if key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            changes[f"{stem.removeprefix(PREFIX)}.weight"] = LowRank(a, tensors[f"{stem}.lora_B.weight"], scale)
    return changes


def _check(changes: dict[str, LowRank], shapes: dict[str, tuple[int, ...]], where: str) -> None:
    """Raises UserError unless there is a weight of the right shape for every change."""
    for name, change in changes.items():
        shape = (change.b.shape[0], change.a.shape[1])
        if shapes.get(name) != shape:
            have = f"of shape {shapes[name]}" if name in shapes else "missing"
            raise UserError(f"{where}: the adapter changes {name}, shape {shape}, which is {have} there")


def fold_into_model(model: nn.Module, adapter: Path) -> None:
    """Add an adapter to the model's weights, in place."""
    changes, weights = read_adapter(adapter), dict(model.named_parameters())
    _check(changes, {name: tuple(w.shape) for name, w in weights.items()}, "the model")
    with torch.no_grad():
        for name, change in changes.items():
            weights[name].copy_(change.added_to(weights[name]))


def merge(checkpoint: Path, adapter: Path, out: Path) -> int:
    """Write `out`: the checkpoint with the adapter added to its weights, and the same files, shards, names and types.

    Returns the number of changed weights. One shard at a time is in memory.
    Raises UserError if `out` exists, if the checkpoint has no safetensors, or if the adapter does not fit.
    """
    changes = read_adapter(adapter)
    shards = sorted(checkpoint.glob("*.safetensors"))
    if not shards:
        raise UserError(f"{checkpoint}: no *.safetensors there")
    if out.exists():
        raise UserError(f"{out}: exists already; give another --out")
    shapes = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as weights:
            shapes.update((name, tuple(weights.get_slice(name).get_shape())) for name in weights.keys())  # noqa: SIM118
    _check(changes, shapes, str(checkpoint))
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(checkpoint, partial, ignore=lambda folder, _: [s.name for s in shards if str(s.parent) == folder])
    for shard in shards:
        weights = load_file(shard)
        weights.update((n, changes[n].added_to(w).contiguous()) for n, w in weights.items() if n in changes)
        save_file(weights, partial / shard.name, metadata={"format": "pt"})
    partial.rename(out)
    return len(changes)
