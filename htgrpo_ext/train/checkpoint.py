"""Checkpoints of the native loop. A kill at any moment leaves them whole.

A checkpoint is a folder that is written under another name and renamed when complete; only renamed ones are read.
It holds no generator's state: every draw is derived from (seed, purpose, cycle, ..), so the cycle's number is enough.
"""

import json
import shutil
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from htgrpo_ext.files import sync_tree

PREFIX = "cycle-"


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write a model, or only its adapters, in the format of its library."""
    cast(PreTrainedModel, model).save_pretrained(folder)


def save_checkpoint(folder: Path, cycle: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
    """Write `folder`/cycle-NNNNNN: weights (or adapters), optimizer, cycle; keep the newest two."""
    final = folder / f"{PREFIX}{cycle:06d}"
    partial = folder / f".partial-{cycle:06d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_weights(model, partial / "model")
    torch.save(optimizer.state_dict(), partial / "optimizer.pt")
    (partial / "state.json").write_text(json.dumps({"cycle": cycle}))
    sync_tree(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync_tree(folder)
    for old in complete_checkpoints(folder)[:-2]:
        shutil.rmtree(old)
    return final


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob(f"{PREFIX}*"))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load weights and optimizer in place; returns the number of cycles done."""
    weights = load_file(next((path / "model").glob("*.safetensors")))
    if hasattr(model, "peft_config"):
        from peft.utils.save_and_load import set_peft_model_state_dict

        set_peft_model_state_dict(model, weights)
    else:
        model.load_state_dict(weights)
    optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True))
    return json.loads((path / "state.json").read_text())["cycle"]
