"""The second reader: what it reads, and a reason where it reads nothing. Never an empty text in place of a failure."""

import os
import re
import shutil
import subprocess

import pytest

from helpers.drawn_words import drawn
from htgrpo_ext.benchmarks import tesseract
from htgrpo_ext.pixels import levels_image

PICTURES = [levels_image(drawn("river")), levels_image(drawn("stone", paper="#bbb")), levels_image(drawn())]
ABSENT = "tesseract is not installed (apt-get install tesseract-ocr)"


def command(folder, monkeypatch, script: str) -> None:
    """Make `tesseract` a script."""
    (folder / "tesseract").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "tesseract").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")


@pytest.mark.skipif(shutil.which("tesseract") is None, reason=ABSENT)
def test_many_pictures_are_read_as_each_alone(tmp_path):
    alone = []
    for i, picture in enumerate(PICTURES[:2]):
        picture.save(tmp_path / f"{i}.png")
        call = ["tesseract", str(tmp_path / f"{i}.png"), "stdout", "--psm", "7", "-l", "eng"]
        alone.append(subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip())
    assert alone == ["river", "stone"]
    assert tesseract.read(PICTURES) == [*alone, ""]
    assert tesseract.read([PICTURES[2], *PICTURES]) == ["", *alone, ""]  # a blank page does not shift the others


def table(*rows: tuple[int, int, float, str]) -> str:
    """A script that prints Tesseract's table: a head, then level, page, eight other columns, confidence, text."""
    lines = ["\t".join(map(str, (level, page, *[0] * 8, conf, text))) for level, page, conf, text in rows]
    return "\n".join(["cat >/dev/null", "cat <<'END'", "level\tpage_num", *lines, "END"])


def test_the_words_of_each_page_are_put_together(tmp_path, monkeypatch):
    pages = [(1, page, -1, "") for page in (1, 2, 3)]
    words = [(5, 1, 96, "two"), (5, 1, 12.5, "words"), (5, 3, 0.0, "SO"), (5, 3, 91, "on")]
    command(tmp_path, monkeypatch, table(*pages, *words))
    assert tesseract.read(PICTURES) == ["two words", "", "on"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            "echo 'no eng.traineddata' >&2; echo more >&2; exit 1",
            r"tesseract failed with status 1 \(no eng.traineddata\)",
        ),
        ("exit 3", r"tesseract failed with status 3 \(no message\)"),
        (table((1, 1, -1, ""), (1, 3, -1, "")), "tesseract gave 2 texts for 3 pictures"),
        (table(*((1, page, -1, "") for page in (1, 2, 3, 4))), "tesseract gave 4 texts for 3 pictures"),
        ("true", "tesseract gave 0 texts for 3 pictures"),
    ],
)
def test_a_failure_is_a_reason(tmp_path, monkeypatch, script, says):
    command(tmp_path, monkeypatch, script)
    with pytest.raises(tesseract.NotRead, match=f"^{says}$"):
        tesseract.read(PICTURES)


def test_an_absent_command_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(tesseract.NotRead, match=f"^{re.escape(ABSENT)}$"):
        tesseract.read(PICTURES)
