"""What backbones share that decode codes to pixels by diffusers' VQModel.

B images, N image tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from htgrpo_ext.backbones.checkpoints import load_by_library
from htgrpo_ext.errors import UserError

DECODED_AT_ONCE = 4  # images; a decoder's activations at full size are large


def chunks(codes_BN: Tensor) -> Iterator[Tensor]:
    """Codes of the images that a decoder takes at once."""
    yield from codes_BN.split(DECODED_AT_ONCE)


def load_vq_model(folder: Path, pixels: int, codebook: int) -> Any:
    """The VQModel in a folder, on the CPU, float32, frozen.

    pixels    of a code's side
    codebook  how many codes it must have

    Raises UserError if it cannot be loaded, or decodes other codes.
    """
    from diffusers.models.autoencoders.vq_model import VQModel

    options = dict(low_cpu_mem_usage=False, output_loading_info=True, local_files_only=True)
    model = load_by_library(lambda: VQModel.from_pretrained(folder, **options), folder)
    config = folder / "config.json"
    if not model.config.lookup_from_codebook:
        raise UserError(f"{config}: lookup_from_codebook is off, so codes cannot be decoded")
    if (scale := 2 ** (len(model.config.block_out_channels) - 1)) != pixels:
        raise UserError(f"{config}: a code has {scale} pixels a side, the layout {pixels}")
    if model.config.num_vq_embeddings < codebook:
        raise UserError(f"{config}: {model.config.num_vq_embeddings} codes, but the model paints {codebook}")
    return model


@torch.no_grad()
def vq_pixels(model: Any, codes_BN: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pixels float32 [B, 3, H, W] in [-1, 1] of codes int64 [B, N]; a VQModel's own are clamped to [0, 1]."""
    pixels = []
    for codes_bN in chunks(codes_BN):
        shape = (len(codes_bN), *grid, model.config.latent_channels)
        grid_bHW = codes_bN.to(model.device).view(shape[:3])
        pixels.append(model.decode(grid_bHW, force_not_quantize=True, shape=shape).sample)
    return torch.cat(pixels).clamp(0, 1) * 2 - 1
