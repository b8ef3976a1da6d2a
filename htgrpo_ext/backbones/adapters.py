"""LoRA adapters as files: read one, add it to a model's weights, or write a checkpoint that contains it.

A weight W of the base model becomes W + alpha/r B A, computed in float32 and rounded once to the type of W. An adapter
is understood as a whole, every key and every tensor, or refused.
"""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from htgrpo_ext.backbones import checkpoints
from htgrpo_ext.backbones.checkpoints import (
    DIFFUSERS,
    read_json,
    read_tensors,
    refuse_non_finite,
    trained_part,
    weight_files,
)
from htgrpo_ext.backbones.policy import is_target
from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.files import new_folder

PREFIX = "base_model.model."  # peft's, before the name that a weight has without it
Shapes = Mapping[str, tuple[int, ...]]


class PlainLora(BaseModel):
    """The keys of adapter_config.json that say what happens to a weight.

    `init_lora_weights` may not be one that changes the base model, such as pissa, olora, corda and loftq: what was
    trained is not the base plus the two matrices.
    """

    peft_type: Literal["LORA"]
    r: PositiveInt
    lora_alpha: Annotated[float, Field(allow_inf_nan=False)]
    target_modules: str | list[str]
    bias: Literal["none"] = "none"
    init_lora_weights: Literal[True, False, "gaussian"] = True


# Keys that may hold anything; every other one belongs to a kind of adapter that is more than plain LoRA.
NO_EFFECT = {"task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout"}
NO_EFFECT |= {"layers_to_transform", "layers_pattern", "exclude_modules", "megatron_core", "runtime_config"}


class LowRank(NamedTuple):
    """The change of one weight [out, in]."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scale: float

    def added_to(self, weight: Tensor) -> Tensor:
        a, b = (t.to(weight.device, torch.float32) for t in (self.a, self.b))
        return (weight.float() + self.scale * (b @ a)).to(weight.dtype)


class Adapter(NamedTuple):
    """A plain LoRA adapter."""

    folder: Path
    changes: dict[str, LowRank]  # by the weight's name in the base model
    targets: str | list[str]  # the modules that were adapted, as peft takes them; empty if only some layers were

    def check(self, shapes: Shapes, where: Path | str) -> None:
        """Raises UserError unless a base model's weights have the names and shapes that the adapter changes."""
        for name, change in self.changes.items():
            shape = (change.b.shape[0], change.a.shape[1])
            if shapes.get(name) != shape:
                have = f"of shape {shapes[name]}" if name in shapes else "missing"
                raise UserError(f"{where}: the adapter changes {name}, shape {shape}, which is {have} there")
        for name, shape in shapes.items():
            if len(shape) == 2 and name not in self.changes and is_target(name.removesuffix(".weight"), self.targets):
                raise UserError(f"{self.folder}: incomplete, no tensors for {name}, which target_modules names")

    def added_to(self, name: str, weight: Tensor) -> Tensor:
        """The weight with its change. Raises UserError if that is not finite."""
        changed = self.changes[name].added_to(weight)
        refuse_non_finite(name, changed, self.folder)
        return changed

    def refuse_no_change(self, changed: int) -> int:
        """The number of changed weights. Raises UserError for 0."""
        if not changed:
            raise UserError(f"{self.folder}: the adapter changes no weight (is it an untrained one?)")
        return changed


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder. Raises UserError if there is none, or if it is not plain LoRA, whole and finite."""
    folder = folder.expanduser()
    file, tensors = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not file.is_file() or not tensors.is_file():
        raise UserError(
            f"{folder}: no adapter there (adapter_config.json and adapter_model.safetensors; "
            "a run has them in checkpoints/cycle-NNNNNN/model and in model)"
        )
    keys = read_json(file)
    used = [key for key, value in keys.items() if value and key not in NO_EFFECT | PlainLora.model_fields.keys()]
    if used:
        raise UserError(f"{file}: `{used[0]}` is {keys[used[0]]!r}; only plain LoRA can be folded in")
    lora = PlainLora(**checkpoints.checked(keys, PlainLora, file))
    checkpoints.read_shapes(tensors)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(tensors):
        module, _, part = key.rpartition(".lora_")
        if not module.startswith(PREFIX) or part not in ("A.weight", "B.weight"):
            raise UserError(f"{tensors}: {key} is no tensor of plain LoRA ({PREFIX}NAME.lora_A.weight or lora_B)")
        refuse_non_finite(key, tensor, tensors)
        pairs.setdefault(f"{module.removeprefix(PREFIX)}.weight", {})[part[0]] = tensor
    if not pairs:
        raise UserError(f"{tensors}: holds no tensors")
    for name, pair in pairs.items():
        shapes = {part: tuple(tensor.shape) for part, tensor in pair.items()}
        if len(pair) < 2 or {len(shape) for shape in shapes.values()} != {2}:
            raise UserError(f"{tensors}: {name} needs two matrices, lora_A and lora_B; there are {shapes}")
        if not shapes["A"][0] == shapes["B"][1] == lora.r:
            raise UserError(f"{tensors}: {name} has matrices of shapes {shapes}, but `r` is {lora.r} ({file.name})")
    changes = {name: LowRank(pair["A"], pair["B"], lora.lora_alpha / lora.r) for name, pair in pairs.items()}
    some_layers = keys.get("layers_to_transform") is not None or keys.get("exclude_modules")
    return Adapter(folder, changes, [] if some_layers else lora.target_modules)


def fold_into_model(model: nn.Module, adapter: Adapter) -> None:
    """Add an adapter to the model's weights, in place. Raises UserError if it does not fit, or changes nothing."""
    weights = dict(model.named_parameters())
    adapter.check({name: tuple(w.shape) for name, w in weights.items()}, "the model")
    changed = 0
    with torch.no_grad():
        for name in adapter.changes:
            new = adapter.added_to(name, weights[name])
            changed += not torch.equal(new, weights[name])
            weights[name].copy_(new)
    adapter.refuse_no_change(changed)


def merge(checkpoint: Path, adapter_folder: Path, out: Path) -> int:
    """Write `out`: the checkpoint with the adapter added to its weights, and the same files, shards, names and types.

    Hidden files and folders (.git, .cache) and further copies of the weights (pytorch_model*.bin, diffusers' other
    types) are left out.

    Returns the number of changed weights. One shard at a time is in memory.
    Raises UserError if `out` exists or cannot be written, if a file of the checkpoint is missing or broken, or if the
    adapter does not fit or changes nothing; then nothing is left of `out`.
    """
    checkpoint, out = checkpoint.expanduser(), out.expanduser()
    trained, stem = trained_part(checkpoint)
    adapter, files = read_adapter(adapter_folder), weight_files(trained, stem)
    read_json(trained / "config.json")
    if out.resolve().is_relative_to(checkpoint.resolve()):
        raise UserError(f"{out}: lies in the checkpoint that is copied there; give another --out")
    adapter.check({name: shape for held in files.values() for name, shape in held.items()}, trained)
    changed, size = 0, sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    with new_folder(out, size) as partial:
        others = [*trained.glob("pytorch_model*.bin*"), *trained.glob(f"{DIFFUSERS}*")]
        index = trained / f"{stem}.safetensors.index.json"
        copy_files(checkpoint, partial, {*files, *others} - {index})
        for file in files:
            weights = dict(read_tensors(file))
            for name, weight in weights.items():
                refuse_non_finite(name, weight, file)
                if name in adapter.changes:
                    weights[name] = adapter.added_to(name, weight).contiguous()
                    changed += not torch.equal(weights[name], weight)
            try:
                save_file(weights, partial / file.relative_to(checkpoint), metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(one_line(error)) from None
        return adapter.refuse_no_change(changed)


def copy_rest(checkpoint: Path, folder: Path) -> None:
    """Copy what a checkpoint holds besides its weights (tokenizer, decoder of pixels) to weights that were saved alone.

    Files that are there already stay.
    """
    weights = [path for kind in ("*.safetensors*", "pytorch_model*.bin*") for path in checkpoint.glob(kind)]
    copy_files(checkpoint, folder, {*weights, *(checkpoint / path.name for path in folder.iterdir())})


def copy_files(source: Path, target: Path, leave_out: Collection[Path]) -> None:
    """Copy a folder's files into an existing folder; not their permissions, so that the copy can be removed again."""
    for path in source.iterdir():
        if path.name.startswith(".") or path in leave_out:
            continue
        if path.is_dir():
            (target / path.name).mkdir()
            copy_files(path, target / path.name, leave_out)
        else:
            shutil.copyfile(path, target / path.name)
