"""MMaDA-8B."""

from typing import TYPE_CHECKING, Any, Literal

from htgrpo_ext.backbones.llada.settings import LladaModelSection

if TYPE_CHECKING:
    from htgrpo_ext.backbones.llada.backbone import ImageBlock
    from htgrpo_ext.backbones.mmada.backbone import MMaDABackbone


class Mmada(LladaModelSection):
    """Settings of MODEL=mmada."""

    name: Literal["mmada"]
    attention: Literal["masked", "as-maskgrpo"]

    source = "Gen-Verse/MMaDA-8B-Base"
    vq_source = "showlab/magvitv2"

    @property
    def num_image_tokens(self) -> int:
        return 1024

    def image_block(self) -> "ImageBlock":
        from htgrpo_ext.backbones.mmada.backbone import image_block

        return image_block()

    def backbone_class(self) -> "type[MMaDABackbone]":
        from htgrpo_ext.backbones.mmada.backbone import MMaDABackbone

        return MMaDABackbone

    def layout(self) -> dict[str, Any]:
        return dict(masks_padding=self.attention == "masked")
