"""Backbones, one folder each: prompts to rows, canonical image codes to logits and pixels."""

from pathlib import Path
from typing import TYPE_CHECKING

from htgrpo_ext.backbones.amused import Amused
from htgrpo_ext.backbones.lumina import Lumina
from htgrpo_ext.backbones.micro import Micro
from htgrpo_ext.backbones.mmada import Mmada
from htgrpo_ext.backbones.settings import ModelSection
from htgrpo_ext.backbones.words import Words, WordsFree
from htgrpo_ext.errors import UserError

if TYPE_CHECKING:
    import torch

    from htgrpo_ext.backbones.base import Backbone

BACKBONES: tuple[type[ModelSection], ...] = (Micro, Words, WordsFree, Mmada, Lumina, Amused)


def load_backbone(
    model: ModelSection,
    device: "str | torch.device" = "cpu",
    seed: int = 0,
    frozen: bool = False,
    adapter: Path | None = None,
) -> "Backbone":
    """The backbone that the settings describe, its checkpoint loaded.

    seed     of fresh adapters' weights
    frozen   for sampling: neither fresh adapters nor a copy for the reference
    adapter  folder of an adapter to fold into the weights; only when frozen

    Raises UserError for a checkpoint that is missing or is another model's, and for an adapter that does not fit.
    """
    if absent := model.absent(pixels=False):
        raise UserError("\n".join(absent))
    if adapter is None:
        return model.load(device, seed, frozen)
    from htgrpo_ext.backbones.adapters import fold_into_model, read_adapter

    change = read_adapter(adapter)  # a broken one is refused before a model is loaded
    backbone = model.load(device, seed, frozen)
    fold_into_model(backbone.model, change)
    return backbone
