"""Checkpoints of the native loop. A kill at any moment leaves them whole, and damage to one is noticed.

A checkpoint is a folder that is written under another name and renamed when complete; only renamed ones are read.
It holds no generator's state: every draw is derived from (seed, purpose, cycle, ..), so the cycle's number is enough.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from htgrpo_ext.errors import UserError
from htgrpo_ext.files import sync_tree

NAME = re.compile(r"cycle-(\d{6,})")


class Saved(NamedTuple):
    """A checkpoint in memory."""

    cycle: int  # cycles done
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]


def digests(folder: Path) -> dict[str, str]:
    """A digest of every file in a folder, by its path in there."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "blake2b").hexdigest()
    return found


def refuse_damage(checkpoint: Path, expected: Mapping[str, str], ignored: str) -> None:
    """Raise UserError naming a file that is missing or not as it was written.

    expected  what `digests` gave
    ignored   the file in the folder that holds it
    """
    found = digests(checkpoint)
    for name in sorted({*expected, *found} - {ignored}):
        if found.get(name) != expected.get(name):
            what = "is missing" if name not in found else "was changed after it was written"
            raise damaged(checkpoint, f"{name} {what}")


def damaged(checkpoint: Path, what: str) -> UserError:
    return UserError(f"{checkpoint}: {what}; remove this checkpoint, and --resume goes on from the one before it")


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write a model, or only its adapters, in the format of its library."""
    cast(PreTrainedModel, model).save_pretrained(folder)


def save_checkpoint(folder: Path, cycle: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Write `folder`/cycle-NNNNNN: weights (or adapters), optimizer, cycle; keep the newest two."""
    final = folder / f"cycle-{cycle:06d}"
    partial = folder / f".partial-{cycle:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_weights(model, partial / "model")
    torch.save(optimizer.state_dict(), partial / "optimizer.pt")
    (partial / "state.json").write_text(json.dumps({"cycle": cycle, "files": digests(partial)}))
    sync_tree(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync_tree(folder)
    for _, old in complete_checkpoints(folder)[:-2]:
        shutil.rmtree(old)
    return final


def complete_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Cycles done and folder of each complete checkpoint, oldest first; other names are left alone."""
    named = ((NAME.fullmatch(path.name), path) for path in folder.glob("cycle-*"))
    return sorted((int(match[1]), path) for match, path in named if match)


def read_checkpoint(path: Path) -> Saved:
    """Read a checkpoint, weights in one file or in shards. Raises UserError naming a file that is damaged."""
    try:
        state = json.loads((path / "state.json").read_bytes())
        cycle, files = int(state["cycle"]), dict(state["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, "state.json cannot be read") from error
    if path.name != f"cycle-{cycle:06d}":
        raise damaged(path, f"state.json is of cycle {cycle}")
    refuse_damage(path, files, "state.json")
    weights: dict[str, Tensor] = {}
    for file in sorted((path / "model").glob("*.safetensors")):
        weights |= load_file(file)
    # To the CPU: the file names the device it was saved from, which here may be another process's, or missing.
    return Saved(cycle, weights, torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True))


def restore(saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state into a model of the same shape."""
    if hasattr(model, "peft_config"):
        from peft.utils.save_and_load import set_peft_model_state_dict

        set_peft_model_state_dict(model, saved.weights)
    else:
        model.load_state_dict(saved.weights)
    optimizer.load_state_dict(saved.optimizer)
