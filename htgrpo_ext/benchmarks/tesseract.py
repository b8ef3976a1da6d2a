"""Tesseract, the command of that name, as a reader that never gave a reward."""

import io
import os
import subprocess
from collections.abc import Sequence

from PIL.Image import Image

from htgrpo_ext.errors import one_line

COMMAND = ("tesseract", "stdin", "stdout", "--psm", "7", "-l", "eng")  # 7: the picture is one line of text
SECONDS = 600  # for one call; 100 words of the words world take three
PAGE_END = "\f"


class NotRead(Exception):
    """Why Tesseract read nothing, in one line."""


def read(pictures: Sequence[Image]) -> list[str]:
    """The text of each picture, by one call: they are the pages of one TIFF. Raises NotRead."""
    pages = io.BytesIO()
    pictures[0].save(pages, "TIFF", save_all=True, append_images=pictures[1:])
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    try:
        done = subprocess.run(COMMAND, input=pages.getvalue(), capture_output=True, timeout=SECONDS, env=environment)
    except FileNotFoundError:
        raise NotRead("tesseract is not installed (apt-get install tesseract-ocr)") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotRead(f"tesseract failed ({one_line(error)})") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise NotRead(f"tesseract failed with status {done.returncode} ({one_line(said[0])})")
    texts = done.stdout.decode(errors="replace").split(PAGE_END)
    if len(texts) != len(pictures) + 1 or texts[-1].strip():  # each page ends so
        raise NotRead(f"tesseract gave {len(texts) - 1} texts for {len(pictures)} pictures")
    return [text.strip() for text in texts[:-1]]
