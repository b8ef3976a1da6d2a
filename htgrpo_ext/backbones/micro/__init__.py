"""The micro model: a masked-diffusion transformer of one million weights, for a laptop."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from htgrpo_ext.backbones.settings import ModelSection
from htgrpo_ext.micro import world

if TYPE_CHECKING:
    import torch

    from htgrpo_ext.backbones.micro.backbone import MicroBackbone
    from htgrpo_ext.backbones.micro.model import MicroConfig
    from htgrpo_ext.backbones.sizes import Sizes
    from htgrpo_ext.core.views import Prompts


class Micro(ModelSection):
    """Settings of MODEL=micro."""

    name: Literal["micro"]

    world = "micro"
    on_accelerators = False
    keeps_keys = True

    @property
    def num_image_tokens(self) -> int:
        return world.NUM_IMAGE_TOKENS

    def backbone_class(self) -> "type[MicroBackbone]":
        """The backbone that `load` makes."""
        from htgrpo_ext.backbones.micro.backbone import MicroBackbone

        return MicroBackbone

    def absent(self, pixels: bool) -> list[str]:
        if (self.checkpoint / "config.json").exists():
            return []
        return [f"{self.checkpoint}: no {self.world} checkpoint there (make one with `htgrpo pretrain-{self.world}`)"]

    def load(self, device: "str | torch.device", seed: int, frozen: bool) -> "MicroBackbone":
        return self.backbone_class().load(self.checkpoint, self.lora_keywords(), device, seed, frozen)

    def config(self) -> "MicroConfig":
        """The checkpoint's sizes; before there is one, those that `htgrpo pretrain-micro` or `-words` gives it."""
        backbone = self.backbone_class()
        return (
            backbone.read_config(self.checkpoint) if self.checkpoint.exists() else backbone.model_class.config_class()
        )

    def prompt_encoder(self) -> "Callable[[Sequence[str]], Prompts]":
        from htgrpo_ext.backbones.micro.backbone import encode_words, read_config

        return partial(encode_words, length=read_config(self.checkpoint).prompt_length)

    def sizes(self) -> "Sizes":
        from htgrpo_ext.backbones.sizes import FLOAT, sizes_of

        config, model_class = self.config(), self.backbone_class().model_class
        return sizes_of(
            self,
            lambda: model_class(config),
            layers=config.num_layers,
            width=config.hidden_size,
            ffn=config.ffn_size,
            sequence=config.prompt_length + self.num_image_tokens,
            codebook=config.codebook_size,
            element=FLOAT,
        )

    def planned_prompts(self, count: int) -> "tuple[Prompts, Prompts]":
        from htgrpo_ext.backbones.micro.backbone import encode_words

        texts = [prompt["prompt"] for prompt in world.split_prompts()[0]]
        chosen = [texts[i * len(texts) // count % len(texts)] for i in range(count)]  # from all tasks
        length = self.config().prompt_length
        return encode_words(chosen, length), encode_words([""], length)
