"""One file per model: prompts to rows, canonical image codes to logits and pixels."""

from pathlib import Path
from typing import Any

import torch

from htgrpo_ext.adapters import fold_into_model
from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.settings import LladaModelSection, Model


def lora_keywords(model: Model) -> dict[str, Any] | None:
    """The model's LoRA settings as keywords of peft's LoraConfig; None when full weights are trained."""
    if model.tuning == "full":
        return None
    targets: list[str] | str = list(model.lora.targets)
    if isinstance(model, LladaModelSection):
        # By name alone `ff_out` would be the output head as well.
        targets = rf".*\.blocks\.\d+\.({'|'.join(targets)})"
    return dict(r=model.lora.rank, lora_alpha=model.lora.alpha, lora_dropout=model.lora.dropout, target_modules=targets)


def load_backbone(
    model: Model,
    device: str | torch.device = "cpu",
    seed: int = 0,
    frozen: bool = False,
    adapter: Path | None = None,
) -> Backbone:
    """The backbone that the settings describe, its checkpoint loaded.

    seed     of fresh adapters' weights
    frozen   for sampling: neither fresh adapters nor a copy for the reference
    adapter  folder of an adapter to fold into the weights; only when frozen

    Raises UserError for a checkpoint that is missing or is another model's.
    """
    backbone = _load(model, device, seed, frozen)
    if adapter is not None:
        fold_into_model(backbone.model, adapter)
    return backbone


def _load(model: Model, device: str | torch.device, seed: int, frozen: bool) -> Backbone:
    lora = None if frozen else lora_keywords(model)
    if model.name == "micro":
        from htgrpo_ext.backbones.micro import MicroBackbone

        return MicroBackbone.load(model.checkpoint, lora, device, seed)
    options = dict(
        dtype=getattr(torch, model.dtype),
        activation_checkpointing=model.activation_checkpointing,
        prompt_length=model.prompt_length,
        vq_checkpoint=model.vq_checkpoint,
        frozen=frozen,
    )
    if model.name == "mmada":
        from htgrpo_ext.backbones.mmada import MMaDABackbone

        masks_padding = model.attention == "masked"
        return MMaDABackbone.load(model.checkpoint, lora, device, seed, masks_padding=masks_padding, **options)
    from htgrpo_ext.backbones.lumina import LuminaBackbone

    size = dict(height=model.height, width=model.width)
    return LuminaBackbone.load(model.checkpoint, lora, device, seed, **size, **options)
