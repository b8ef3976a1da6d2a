"""Scored sets of images, read back and held against each other: only what differs by its model alone is compared."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.imagesets.base import IMAGES, Item, Suite
from htgrpo_ext.imagesets.columns import Columns
from htgrpo_ext.imagesets.record import Record
from htgrpo_ext.imagesets.scorers import scorer_named
from htgrpo_ext.imagesets.scorers.base import Scorer
from htgrpo_ext.imagesets.scores import ScoreLine, images_digest, read_about, read_scores, refuse_changed_images
from htgrpo_ext.imagesets.sets import check_set

ROW = ("model", "weights", "adapter", "label", "format")  # of a record: what may differ between the rows of a table


class Scored(NamedTuple):
    """What a scorer said of a set."""

    scorer: Scorer
    lines: Sequence[ScoreLine]  # Q * I
    columns: Columns
    official: Columns | None  # as the benchmark's own script counts, where that differs


@dataclass(frozen=True)
class ScoredSet:
    folder: Path  # SET
    suite: Suite
    items: Sequence[Item]
    record: Record
    scores: Mapping[str, Scored]  # by the scorer's name

    @property
    def label(self) -> str:
        return self.record.label

    @property
    def model(self) -> str:
        return str(self.record.model.get("name"))

    def load(self, place: int) -> list[Image]:
        """The images of the item at a place."""
        return self.suite.load(self.folder / IMAGES, self.items[place])


def find_sets(folders: Sequence[Path]) -> list[Path]:
    """The sets that folders are, or hold. Raises UserError for a folder without any, and for a set that comes twice."""
    found: list[Path] = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.rglob("record.json"))
        sets = [folder] if (folder / "record.json").exists() else inside
        if not sets:
            raise UserError(f"{folder}: no set of images there (record.json is missing; htgrpo eval generate)")
        found += sets
    seen: dict[Path, Path] = {}
    for path in found:
        if (real := path.resolve()) in seen:
            raise UserError(f"{path}: the same set as {seen[real]}; name it once")
        seen[real] = path
    return found


def read_sets(folders: Sequence[Path], model: str | None = None) -> dict[str, list[ScoredSet]]:
    """Scored sets, by benchmark, in the order given.

    model  that all sets must be of, as settings call it; None: any

    Raises UserError if a set is incomplete, is not scored, or was scored before its images changed; if two sets of a
    benchmark differ by more than their model; if one was scored by a scorer and another was not; if two are of the same
    model; and if a label is of two kinds of models.
    """
    benches: dict[str, list[ScoredSet]] = {}
    for folder in find_sets(folders):
        one = _read_set(folder)
        if model not in (None, one.model):
            raise UserError(f"{folder}: a set of the model {one.model}, not of {model}")
        benches.setdefault(one.record.bench, []).append(one)
    for sets in benches.values():
        for other in sets[1:]:
            _refuse_mixed(sets[0], other)
        _refuse_rows(sets)
    return benches


def _read_set(folder: Path) -> ScoredSet:
    suite, items, record = check_set(folder)
    names = sorted(path.stem for path in (folder / "scores").glob("*.json"))
    if not names:
        raise UserError(f"{folder}: not scored yet (htgrpo eval score {folder} --scorer NAME)")
    digest = images_digest(folder, suite, items)
    scores = {name: _read_scores(folder, name, items, record, digest) for name in names}
    return ScoredSet(folder, suite, items, record, scores)


def _read_scores(folder: Path, name: str, items: Sequence[Item], record: Record, digest: str) -> Scored:
    again = f"htgrpo eval score {folder} --scorer {name}"
    about = read_about(folder, name) or {"images": ""}
    refuse_changed_images(folder, name, about, digest)
    scorer = scorer_named(about.get("scorer", name), about.get("options"))
    lines = read_scores(folder, name, items, record.images_per_prompt)
    try:
        lacking = sum(line.values.keys() != set(scorer.metrics) for line in lines)
        if lacking != about.get("lacking", 0):
            raise ValueError(f"{lacking} lines have not all of {', '.join(scorer.metrics)}")
        columns = scorer.columns(items, lines, about)
        official = scorer.columns_official(items, lines, about)
    except (KeyError, ValueError, TypeError) as error:
        where = folder / "scores" / f"{name}.jsonl"
        raise UserError(f"{where}: not what {name} writes ({one_line(repr(error))}); {again} --again") from None
    return Scored(scorer, lines, columns, official)


def _refuse_mixed(one: ScoredSet, other: ScoredSet) -> None:
    ours, theirs = (asdict(each.record) for each in (one, other))
    for key in sorted(ours.keys() - set(ROW)):
        if ours[key] != theirs[key]:
            differ = "; ".join(_differences(key, ours[key], theirs[key]))
            raise UserError(f"mixed runs: {other.folder} has {differ} than {one.folder}; compare sets made alike")
    for have, lack in ((one, other), (other, one)):
        if missing := have.scores.keys() - lack.scores.keys():
            name = min(missing)
            raise UserError(
                f"{lack.folder}: not scored by {name}, but {have.folder} is (htgrpo eval score {lack.folder} "
                f"--scorer {name})"
            )


def _differences(key: str, ours, theirs) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for part in dict.fromkeys([*ours, *theirs]):
            if ours.get(part) != theirs.get(part):
                yield from _differences(f"{key}.{part}", ours.get(part), theirs.get(part))
    elif key == "prompts":
        yield "other prompts"
    else:
        yield f"another {key} ({_words(theirs)}, not {_words(ours)})"


def _words(value) -> str:
    return one_line(json.dumps(value), 40)


def _refuse_rows(sets: Sequence[ScoredSet]) -> None:
    """Raise UserError for two sets of one model, and for one label of two kinds of models."""
    models: dict[tuple, Path] = {}
    rows: dict[str, ScoredSet] = {}
    for one in sets:
        first = rows.setdefault(one.label, one)
        if first.model != one.model:
            both = f"{one.folder} is of {one.model}, {first.folder} of {first.model}"
            raise UserError(f"mixed runs: {both}, and both are labelled `{one.label}`")
        model = (one.model, one.record.weights, one.record.adapter)
        if model in models:
            raise UserError(
                f"{one.folder}: the same model as {models[model]} (weights and adapter agree); name it once"
            )
        models[model] = one.folder
