"""Lumina-DiMOO-8B."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from htgrpo_ext.backbones.llada.settings import LladaModelSection

if TYPE_CHECKING:
    from htgrpo_ext.backbones.llada.backbone import ImageBlock
    from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone

PIXELS = 16  # of a code's side
Side = Annotated[int, Field(ge=PIXELS, le=2048, multiple_of=PIXELS)]  # trained up to 1024 x 1024, or 2048 x 512


class Lumina(LladaModelSection):
    """Settings of MODEL=lumina."""

    name: Literal["lumina"]
    height: Side
    width: Side

    source = "Alpha-VLLM/Lumina-DiMOO"

    @property
    def num_image_tokens(self) -> int:
        return (self.height // PIXELS) * (self.width // PIXELS)

    def image_block(self) -> "ImageBlock":
        from htgrpo_ext.backbones.lumina.backbone import image_block

        return image_block(self.height, self.width)

    def backbone_class(self) -> "type[LuminaBackbone]":
        from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone

        return LuminaBackbone

    def layout(self) -> dict[str, Any]:
        return dict(height=self.height, width=self.width)
