"""What the settings of every backbone have.

A backbone is a folder with a subclass of `ModelSection` and a line in `BACKBONES`. Settings load no torch, so a
subclass imports the model inside its methods.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from htgrpo_ext.section import Section, Share

if TYPE_CHECKING:
    import torch

    from htgrpo_ext.backbones.base import Backbone
    from htgrpo_ext.backbones.sizes import Sizes
    from htgrpo_ext.core.views import Prompts


class Lora(Section):
    rank: Annotated[int, Field(ge=1, le=4096)]  # the width of 8B models: a larger one is more than the whole matrix
    alpha: Annotated[int, Field(ge=1, le=2**20)]
    dropout: Share
    targets: Annotated[list[str], Field(min_length=1)]


class ModelSection(Section):
    """A run's `model` section; a subclass is one backbone: its settings, its loading and its sizes."""

    name: Any  # a subclass allows one literal
    checkpoint: Path
    tuning: Literal["full", "lora"]
    lora: Lora | None = None

    # The linear maps of a block, which may get adapters; here they are LLaDA's and the micro model's.
    projections: ClassVar[Sequence[str]] = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")
    world: ClassVar[str | None] = None  # the world whose codes it paints; rewards and benchmarks may read them
    on_accelerators: ClassVar[bool] = True  # `htgrpo plan` shows memory and time of devices
    planned_on: ClassVar[Sequence[str]] = ("8 x A100-80G", "1 x H200")  # of these; workflow/plan.py knows them
    keeps_keys: ClassVar[bool] = False  # `image_logits` takes `kept`, for `rollout.reuse`
    not_in_maskgrpo: ClassVar[str] = ""  # why MaskGRPO's loop cannot train it, if it cannot

    source: ClassVar[str] = ""  # the checkpoint's repository on Hugging Face, if it is published

    @property
    def num_image_tokens(self) -> int:
        """N, tokens of an image."""
        raise NotImplementedError

    def problems(self) -> list[str]:
        """What is wrong between these fields, one line each."""
        if self.tuning == "lora" and self.lora is None:
            return ["tuning is lora, but there are no LoRA settings (model.tuning, model.lora)"]
        return [
            f"no projection is called `{name}` (model.lora.targets; there are {', '.join(self.projections)})"
            for name in (self.lora.targets if self.lora else ())
            if name not in self.projections
        ]

    def absent(self, pixels: bool) -> list[str]:
        """The folders of weights that are not there, one line each, with the command that gets them.

        pixels  whether images will be decoded
        """
        return self._absent("checkpoint", self.checkpoint, self.source)

    @staticmethod
    def _absent(setting: str, folder: Path, source: str) -> list[str]:
        if folder.is_dir():
            return []
        hint = f"; get it with: hf download {source} --local-dir {folder}" if source else ""
        return [f"{folder}: no such folder (model.{setting}){hint}"]

    def lora_targets(self, lora: Lora) -> list[str] | str:
        """The modules that get adapters, as peft takes them; see `is_target`."""
        return list(lora.targets)

    def lora_keywords(self) -> dict[str, Any] | None:
        """The LoRA settings as keywords of peft's LoraConfig; None when full weights are trained."""
        if self.tuning == "full" or self.lora is None:
            return None
        lora, targets = self.lora, self.lora_targets(self.lora)
        return dict(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)

    def load(self, device: "str | torch.device", seed: int, frozen: bool) -> "Backbone":
        """The backbone with its checkpoint loaded; see `load_backbone`."""
        raise NotImplementedError

    def prompt_encoder(self) -> "Callable[[Sequence[str]], Prompts]":
        """What `Backbone.encode_prompts` does, before the model is loaded for training. Raises UserError.

        A model that takes long to load answers without its weights.
        """
        return self.load("cpu", 0, frozen=True).encode_prompts

    def sizes(self) -> "Sizes":
        """The sizes that memory and time follow from; nothing is loaded. Raises UserError for a bad config.json."""
        raise NotImplementedError

    def planned_prompts(self, count: int) -> "tuple[Prompts, Prompts]":
        """Rows of `count` different prompts, and the unconditional row, for `htgrpo plan`; no checkpoint is read."""
        raise NotImplementedError
