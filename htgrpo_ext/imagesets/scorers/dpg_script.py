"""What DPG-Bench's script writes, read back and held against what it was asked.

It writes a line per image, then a summary, into one file; a line per question and tile into another.
I tiles of an image.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.scorers.dpg_questions import Questions, tile_score

Answers = dict[int, bool]  # of a tile, by proposition_id


class Reply(NamedTuple):
    answers: dict[str, list[Answers]]  # of each item that the script counted, its I tiles
    overall: float  # the score in its summary
    broad: dict[str, float]  # its broad categories, likewise


def read_reply(
    result: Path, log: str, files: Mapping[str, Path], questions: Questions, tiles: int, side: int, may_fail: str
) -> Reply:
    """Read what the script wrote about some images.

    result     its --res-path
    log        what it printed
    files      the image of each item
    questions  as the script reads them
    side       of a tile, in pixels
    may_fail   an item that it may drop

    Raises UserError if it does not answer every question about every tile of every image exactly once, or if its scores
    are not those of its answers.
    """
    for failed in re.findall(r"Failed filename: (.+?\.png)(.*)", log):
        if failed[0] != f"{may_fail}.png":
            raise UserError(f"{result}: the script failed at {failed[0]}:{failed[1][:100]}")
    text, _, summary = result.read_text(encoding="utf-8").partition("Model: ")
    scores = _by_file(text, result, files)
    details = _by_file(_detail(result).read_text(encoding="utf-8"), _detail(result), files)
    answers = {}
    for item, file in files.items():
        if len(scores[item]) != 1:
            if item == may_fail and not scores[item]:
                continue
            raise UserError(f"{result}: {len(scores[item])} lines of {file.name}, not 1")
        answers[item] = _answers(details[item], questions, item, tiles, side, _detail(result))
        parents = {number: question.parents for number, question in questions[item].items()}
        ours = [tile_score(tile, parents) for tile in answers[item]]
        theirs = [float(part) for part in scores[item][0].split(", ")]
        if len(theirs) != tiles + 1 or any(abs(a - b) > 1e-9 for a, b in zip(ours, theirs[:-1], strict=True)):
            raise UserError(f"{result}: the scores of {file.name} are not those of its answers")
    overall = re.search(r"DPG-Bench score: (\S+)", summary)
    if overall is None:
        raise UserError(f"{result}: no summary at its end")
    broad = re.findall(r"^\t([^\t:]+): (\S+)$", summary.partition("L2 category scores")[0], re.MULTILINE)
    return Reply(answers, float(overall[1]), {name: float(value) for name, value in broad})


def _detail(result: Path) -> Path:
    return result.with_name(result.name.replace(".txt", "_detail.txt"))


def _by_file(text: str, path: Path, files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Lines by the item whose file they begin with, without it."""
    named = {str(file): item for item, file in files.items()}
    found: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(text.splitlines(), 1):
        name, _, rest = line.partition(".png, ")
        if f"{name}.png" not in named:
            raise UserError(f"{path}:{number}: a line of an image that is not in this set")
        found[named[f"{name}.png"]].append(rest)
    return found


def _answers(lines: list[str], questions: Questions, item: str, tiles: int, side: int, path: Path) -> list[Answers]:
    corners = [(0, 0), (side, 0), (0, side), (side, side)][:tiles]
    asked = [
        (tile, number, f"({x}, {y}, {x + side}, {y + side}), {question.text}, ")
        for tile, (x, y) in enumerate(corners)
        for number, question in questions[item].items()
    ]
    if len(lines) != len(asked):
        raise UserError(f"{path}: {len(lines)} answers about {item}, not {len(asked)}")
    found: list[Answers] = [{} for _ in corners]
    for line, (tile, number, start) in zip(lines, asked, strict=True):
        if not line.startswith(start):
            raise UserError(f"{path}: an answer about tile {tile} of {item} is not to its question {number}")
        found[tile][number] = line.removeprefix(start) == "yes"
    return found
