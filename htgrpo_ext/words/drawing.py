"""How pictures of words are drawn: a background, and a word on it in one of matplotlib's fonts.

Two difficulties. Fixed: one font and size, the first letter always at the same place. Free: three fonts, two sizes, and
the word anywhere in the picture, by steps of a token. Background, brightness and contrast vary in both; dark on light
is as likely as light on dark.

H x W pixels.
"""

from functools import cache
from pathlib import Path
from random import Random

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from htgrpo_ext.words.world import HEIGHT, LETTERS, PATCH, WIDTH

MONOSPACED = "DejaVuSansMono-Bold"
FREE_FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", MONOSPACED)
FREE_SIZES = (16, 20)  # pixels
MARGIN = 2  # pixels left and right: letters that touch the edge are misread
FIXED_SIZE = 20  # a letter is then 12 pixels wide, three tokens
FIXED_ROW = 1  # of tokens, the first with letters

BACKGROUNDS = ("plain", "gradient", "stripes", "checks", "noise")
CONTRAST = (120.0, 200.0)  # grey levels between letters and the mean background
DARKEST, LIGHTEST = 20.0, 235.0
AMPLITUDE = (6.0, 20.0)  # grey levels of the background's pattern, up and down


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def _pattern(rng: Random) -> NDArray[np.float32]:
    """A background's pattern [H, W] in [-1, 1]."""
    kind = rng.choice(BACKGROUNDS)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    if kind == "plain":
        pattern = np.zeros((HEIGHT, WIDTH))
    elif kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        slope = np.cos(angle) * (2 * columns / (WIDTH - 1) - 1) + np.sin(angle) * (2 * rows / (HEIGHT - 1) - 1)
        pattern = slope / np.abs(slope).max()
    elif kind == "stripes":
        along, period = rng.choice((rows, columns)), rng.choice((4, 8))
        pattern = np.where(along % period < period // 2, 1, -1)
    elif kind == "checks":
        side = rng.choice((4, 8))
        pattern = np.where((rows // side + columns // side) % 2, 1, -1)
    else:
        pattern = np.random.default_rng(rng.getrandbits(64)).uniform(-1, 1, (HEIGHT, WIDTH))
    return pattern.astype(np.float32)


def _ink(text: str, rng: Random, free: float) -> NDArray[np.float32]:
    """How much of each pixel letters cover, [H, W] in [0, 1]."""
    font, column, row = _font(MONOSPACED, FIXED_SIZE), 0, FIXED_ROW

    def chance() -> bool:
        return free == 1 or rng.random() < free

    if free:
        if chance():
            fonts = [_font(name, size) for name in FREE_FONTS for size in FREE_SIZES]
            font = rng.choice([each for each in fonts if _box(text, each)[2] <= WIDTH - 2 * MARGIN])
        column = rng.randint(0, int(free * (WIDTH - 2 * MARGIN - _box(text, font)[2])) // PATCH)
        if chance():
            row = rng.randint(0, (HEIGHT - _box(LETTERS, font)[3]) // PATCH)
    left, top = _box(text, font)[0], _box(LETTERS, font)[1]  # the line of letters does not depend on the word
    ink = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(ink).text((MARGIN + PATCH * column - left, PATCH * row - top), text, fill=255, font=font)
    return np.asarray(ink, np.float32) / np.float32(255)


def _box(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int, int, int]:
    """Left, top, width and height in pixels of the text's ink, from where it is drawn."""
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    return left, top, right - left, bottom - top


def draw(text: str, rng: Random, free: float) -> NDArray[np.uint8]:
    """A picture [H, W] of a text of one to five lower-case letters. The same `rng` draws the same picture.

    free  0 (False): the fixed difficulty. 1 (True): the free one. Between: another font and size with this chance,
          another row with this chance, and a column among this share of the room
    """
    ink, amplitude, contrast = _ink(text, rng, free), rng.uniform(*AMPLITUDE), rng.uniform(*CONTRAST)
    dark = rng.uniform(DARKEST, LIGHTEST - contrast)
    letters, behind = rng.choice(((dark, dark + contrast), (dark + contrast, dark)))
    background = behind + amplitude * _pattern(rng)
    return (background * (1 - ink) + letters * ink).clip(0, 255).round().astype(np.uint8)
