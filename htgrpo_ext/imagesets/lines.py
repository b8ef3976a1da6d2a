"""The lines of a benchmark's prompt file; a file of another benchmark is called by its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from htgrpo_ext.errors import UserError
from htgrpo_ext.prompts.files import json_object, text_lines

DATASETS = Path(__file__).parents[2] / "upstream" / "dataset"  # MaskGRPO has the files of both benchmarks
KNOWN = {"item_id": "DPG-Bench", "scene": "MicroEval", "include": "GenEval"}  # by a key that only its lines have


class Place(NamedTuple):
    text: str
    place: str  # FILE:LINE


def benchmark_file(prompts: Path | None, usual: str, title: str) -> Path:
    """A benchmark's prompt file: `prompts`, or if that is None `usual` in MaskGRPO's folder dataset/.

    Raises UserError if it is missing.
    """
    path = DATASETS / usual if prompts is None else prompts
    if not path.is_file():
        raise UserError(f"{path}: no such file (run `make upstream`, or give {title}'s prompts by --prompts FILE)")
    return path


def benchmark_lines(path: Path, title: str) -> list[Place]:
    """The lines of a benchmark's prompt file, JSON objects, all different.

    Raises UserError if the file is another benchmark's, or repeats a line.
    """
    lines = [Place(text, place) for text, place in text_lines(path)]
    if not lines:
        raise UserError(f"{path}: holds no prompt")
    first = json_object(*lines[0])
    other = next((name for key, name in KNOWN.items() if key in first), "no benchmark that is known here")
    if other != title:
        raise UserError(f"{path}: its lines are those of {other}, not {title}'s (--prompts, --bench)")
    refuse_repeated(title, [line.text for line in lines], lines)
    return lines


def refuse_repeated(title: str, values: Sequence[str], lines: Sequence[Place]) -> None:
    """Raise UserError for a value that two lines have."""
    seen: dict[str, str] = {}
    for value, (_, place) in zip(values, lines, strict=True):
        if value in seen:
            raise UserError(f"{place}: repeats {seen[value]}, but all of {title}'s {len(lines):,} lines differ")
        seen[value] = place
