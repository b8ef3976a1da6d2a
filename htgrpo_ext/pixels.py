"""Conversion of pixels: float32 in [-1, 1] in this process, 8-bit PNG (lossless) between processes and in files.

B images, H x W pixels.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_levels(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] as the nearest of 256 levels, uint8, on the CPU; any shape, values outside are clipped."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def from_levels(levels: Tensor) -> Tensor:
    """Levels 0..255 as float32 pixels in [-1, 1]; `to_levels` undoes it exactly."""
    return levels.float() / 127.5 - 1


def to_image(pixels_3HW: Tensor) -> Image.Image:
    """A picture of pixels in [-1, 1]."""
    return levels_image(to_levels(pixels_3HW))


def levels_image(levels_3HW: Tensor) -> Image.Image:
    """A picture of uint8 levels."""
    return Image.fromarray(levels_3HW.permute(1, 2, 0).contiguous().numpy())


def encode_png(levels_3HW: Tensor) -> bytes:
    """A lossless PNG of uint8 levels, lightly compressed, because it is only sent once."""
    buffer = io.BytesIO()
    levels_image(levels_3HW).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def png_size(data: bytes) -> tuple[int, int]:
    """Height and width from a PNG's header; no pixels are decoded. Raises ValueError for anything else."""
    with _opened(data) as image:
        return image.height, image.width


def decode_png(data: bytes) -> Tensor:
    """Levels uint8 [3, H, W] of a PNG.

    Raises ValueError for anything else, and for a picture with transparency or 16 bits a channel, which three channels
    of 8 bits cannot represent.
    """
    with _opened(data) as image:
        if (
            image.mode not in ("RGB", "L", "P", "1")
            or "transparency" in image.info
            or ";16" in str(getattr(image, "tile", ""))
        ):
            raise ValueError("not a PNG of 8 bits a channel without transparency")
        levels_HW3 = np.array(image.convert("RGB"))
    return torch.from_numpy(levels_HW3).permute(2, 0, 1).contiguous()


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable PNG ({error})") from None
