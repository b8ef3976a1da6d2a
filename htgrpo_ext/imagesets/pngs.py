"""The PNGs of a set: the same bytes for the same pixels, stamped with what made them, checked without decoding.

The stamp is a line of text in the file's metadata: the digest of the record, and the file's place in the layout. So an
image that was copied from another set, or to another place, is found.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from htgrpo_ext.errors import UserError
from htgrpo_ext.files import sync_tree

STAMP = "htgrpo"  # the keyword of the text
PARTIAL = ".partial-"


@contextmanager
def written_whole(root: Path, name: str) -> Iterator[Path]:
    """A path for a new file or folder, which becomes ROOT/NAME when it is written and forced to disk.

    Until then it stands beside `root`: scorers that list a folder never see a part. Raises UserError if it is there.
    """
    if (root / name).exists():
        raise UserError(f"{root / name}: is there already")
    root.mkdir(parents=True, exist_ok=True)
    partial = root.with_name(PARTIAL + name)
    yield partial
    sync_tree(partial)
    partial.rename(root / name)


def sweep(folder: Path) -> None:
    """Remove what a kill left half written in SET."""
    for path in [*folder.glob(f"{PARTIAL}*"), *folder.glob(".*.partial")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def save_png(path: Path, image: Image.Image, stamp: str, place: str) -> None:
    """place  of the file in the layout"""
    information = PngInfo()
    if stamp:
        information.add_text(STAMP, f"{stamp} {place}")
    image.save(path, format="PNG", pnginfo=information)


def png_problem(path: Path, size: tuple[int, int]) -> str | None:
    """What is wrong with an RGB image of (width, height) that should be there. Its checksums are compared."""
    try:
        if not path.stat().st_size:
            return f"{path}: empty"
        with Image.open(path, formats=["PNG"]) as image:
            if image.size != size:
                return f"{path}: {image.width} x {image.height} pixels, not {size[0]} x {size[1]}"
            if image.mode != "RGB":
                return f"{path}: its pixels are {image.mode}, not RGB"
            image.verify()
    except FileNotFoundError:
        return f"{path}: missing"
    except UnidentifiedImageError:
        return f"{path}: no PNG"
    except (OSError, SyntaxError, ValueError) as error:
        return f"{path}: truncated or damaged ({error})"
    return None


def stamp_of(path: Path) -> str:
    """The stamp and place in a PNG, or an empty text."""
    with Image.open(path, formats=["PNG"]) as image:
        return str(image.info.get(STAMP, ""))


def read_png(path: Path) -> Image.Image:
    """The pixels of a PNG. Raises UserError if it is missing or damaged."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; go on with htgrpo eval generate") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: no readable PNG ({error})") from None
