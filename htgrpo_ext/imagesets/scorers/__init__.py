"""Scorers of image sets. A new one needs a file in this folder and a line in `SCORERS`."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.imagesets.scorers.base import Scorer
from htgrpo_ext.imagesets.scorers.dpg import DPG
from htgrpo_ext.imagesets.scorers.geneval import GenEval
from htgrpo_ext.imagesets.scorers.micro import Micro
from htgrpo_ext.imagesets.scorers.rewards import Clip, DeQA, HPSv3, ImageReward, Ocr, UnifiedReward, UniPercept

SCORERS: tuple[type[Scorer], ...] = (
    GenEval,
    DPG,
    DeQA,
    ImageReward,
    HPSv3,
    UniPercept,
    Clip,
    UnifiedReward,
    Ocr,
    Micro,
)


def scorer_named(name: str, options: Mapping | None = None) -> Scorer:
    """The scorer called `name`, or the one in `file.py:Class`, with its options. Raises UserError."""
    found = _class_in_file(name) if ":" in name else {scorer.name: scorer for scorer in SCORERS}.get(name)
    if found is None:
        names = ", ".join(scorer.name for scorer in SCORERS)
        raise UserError(f"unknown scorer `{one_line(name)}` (one of {names}, or file.py:Class)")
    try:
        return found.model_validate(dict(options or {}))
    except ValidationError as error:
        raise UserError("\n".join(sorted(_line(found, each) for each in error.errors()))) from None


def _line(scorer: type[Scorer], error: Mapping) -> str:
    option = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"scorer {scorer.name}: unknown option `{option}` (one of {', '.join(scorer.model_fields) or 'none'})"
    said = error["msg"][0].lower() + error["msg"][1:]
    return f"scorer {scorer.name}: option `{option}`: {said} (got {one_line(repr(error['input']), 60)})"


def _class_in_file(name: str) -> type[Scorer]:
    from htgrpo_ext.rewards.scorers import module_of

    file, _, wanted = name.rpartition(":")
    found = getattr(module_of(Path(file)), wanted, None)
    if not (isinstance(found, type) and issubclass(found, Scorer)):
        raise UserError(f"{name}: no class of that name that is a Scorer (htgrpo_ext/imagesets/scorers/base.py)")
    return found
