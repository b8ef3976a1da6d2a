"""Tesseract, the command of that name, as a reader that never gave a reward."""

import io
import os
import subprocess
from collections.abc import Sequence

from PIL.Image import Image

from htgrpo_ext.errors import one_line

COMMAND = ("tesseract", "stdin", "stdout", "--psm", "7", "-l", "eng", "tsv")  # 7: the picture is one line of text
SECONDS = 600  # for one call; 100 words of the words world take three
PAGE, WORD = "1", "5"  # levels of the table's rows


class NotRead(Exception):
    """Why Tesseract read nothing, in one line."""


def read(pictures: Sequence[Image]) -> list[str]:
    """The text of each picture, by one call: they are the pages of one TIFF. Raises NotRead.

    A word without any confidence is left out: Tesseract finds some on blank pictures.
    """
    pages, file = [picture.copy() for picture in pictures], io.BytesIO()  # Pillow fails on one that was saved as a PNG
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    try:
        done = subprocess.run(COMMAND, input=file.getvalue(), capture_output=True, timeout=SECONDS, env=environment)
    except FileNotFoundError:
        raise NotRead("tesseract is not installed (apt-get install tesseract-ocr)") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotRead(f"tesseract failed ({one_line(error)})") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise NotRead(f"tesseract failed with status {done.returncode} ({one_line(said[0])})")
    rows = [row.split("\t") for row in done.stdout.decode(errors="replace").splitlines()[1:]]
    texts: dict[str, list[str]] = {page: [] for level, page, *_ in rows if level == PAGE}
    if list(texts) != [str(number) for number in range(1, len(pictures) + 1)]:
        raise NotRead(f"tesseract gave {len(texts)} texts for {len(pictures)} pictures")
    for level, page, *_, confidence, text in rows:
        if level == WORD and float(confidence) > 0:
            texts[page].append(text)
    return [" ".join(words) for words in texts.values()]
