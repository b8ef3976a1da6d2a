"""Jinja templates of self-contained pages: they escape all text, and hold their pictures as data URIs."""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image


def templates() -> Environment:
    """The templates of this folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "png": _png, "duration": _duration}
    return environment


def data_uri(content: bytes, kind: str) -> str:
    """kind: of the image, such as png"""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
