"""Lumina-DiMOO-8B."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from htgrpo_ext.backbones.llada.settings import LladaModelSection

if TYPE_CHECKING:
    import torch

    from htgrpo_ext.backbones.llada.backbone import ImageBlock
    from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone

PIXELS = 16  # of a code's side
MOST_PIXELS = 2_048  # of an image's side: 16 times the tokens of the paper's


class Lumina(LladaModelSection):
    """Settings of MODEL=lumina."""

    name: Literal["lumina"]
    height: Annotated[int, Field(ge=PIXELS, le=MOST_PIXELS, multiple_of=PIXELS)]
    width: Annotated[int, Field(ge=PIXELS, le=MOST_PIXELS, multiple_of=PIXELS)]

    @property
    def num_image_tokens(self) -> int:
        return (self.height // PIXELS) * (self.width // PIXELS)

    def image_block(self) -> "ImageBlock":
        from htgrpo_ext.backbones.lumina.backbone import image_block

        return image_block(self.height, self.width)

    def load(self, device: "str | torch.device", seed: int, frozen: bool) -> "LuminaBackbone":
        from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone

        size = dict(height=self.height, width=self.width)
        return LuminaBackbone.load(device=device, seed=seed, **size, **self.load_options(frozen))
