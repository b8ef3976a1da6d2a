"""The lines of a set that is being scored, so that a kill loses none; a line that it left half written is dropped."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from htgrpo_ext.files import write_atomically
from htgrpo_ext.imagesets.scores import ScoreLine


class PartialScores:
    """An append-only file: a header, then lines.

    path    the file; what stands there is continued only if its header is the same
    header  what the lines depend on
    wanted  (item's key, image) of each line, in order; an item with fewer than its I lines is scored again

    `lines` are those so far.
    """

    def __init__(self, path: Path, header: Mapping, wanted: Sequence[tuple[str, int]], images_per_prompt: int):
        first = json.dumps(dict(header), sort_keys=True) + "\n"
        lines = _complete(path, first, wanted)
        self.lines = lines[: len(lines) - len(lines) % images_per_prompt]
        write_atomically(path, first + "".join(_text(line) for line in self.lines))
        self._file = path.open("a", encoding="utf-8")

    def add(self, line: ScoreLine) -> None:
        self._file.write(_text(line))
        self._file.flush()
        self.lines.append(line)

    def __enter__(self) -> "PartialScores":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def _text(line: ScoreLine) -> str:
    return json.dumps(asdict(line)) + "\n"


def _complete(path: Path, first: str, wanted: Sequence[tuple[str, int]]) -> list[ScoreLine]:
    try:
        header, *texts = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, ValueError):
        return []
    found: list[ScoreLine] = []
    if header != first:
        return found
    for text, place in zip(texts, wanted, strict=False):
        try:
            line = ScoreLine(**json.loads(text))
        except (ValueError, TypeError):
            break
        if not text.endswith("\n") or (line.item, line.image) != place:
            break
        found.append(line)
    return found
