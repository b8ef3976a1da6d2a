"""Pictures with text on them, drawn by Pillow in a font that matplotlib brings."""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def drawn(*lines: str, size=(96, 32), ink="black", paper="white", height: int = 20) -> Tensor:
    """Lines of text, each centred in its part of the picture, uint8 [3, H, W]; size is (width, height)."""
    picture = Image.new("RGB", size, paper)
    for i, line in enumerate(lines):
        place = (size[0] / 2, size[1] * (2 * i + 1) / (2 * len(lines)))
        ImageDraw.Draw(picture).text(place, line, ink, font(height), anchor="mm")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
