"""MMaDA-8B."""

from typing import TYPE_CHECKING, Literal

from htgrpo_ext.backbones.llada.settings import LladaModelSection

if TYPE_CHECKING:
    import torch

    from htgrpo_ext.backbones.llada.backbone import ImageBlock
    from htgrpo_ext.backbones.mmada.backbone import MMaDABackbone


class Mmada(LladaModelSection):
    """Settings of MODEL=mmada."""

    name: Literal["mmada"]
    attention: Literal["masked", "as-maskgrpo"]

    @property
    def num_image_tokens(self) -> int:
        return 1024

    def image_block(self) -> "ImageBlock":
        from htgrpo_ext.backbones.mmada.backbone import image_block

        return image_block()

    def load(self, device: "str | torch.device", seed: int, frozen: bool) -> "MMaDABackbone":
        from htgrpo_ext.backbones.mmada.backbone import MMaDABackbone

        masks_padding = self.attention == "masked"
        return MMaDABackbone.load(device=device, seed=seed, masks_padding=masks_padding, **self.load_options(frozen))
