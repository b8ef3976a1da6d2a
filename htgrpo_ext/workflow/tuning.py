"""What a comparison of tuned methods tries, and how it chooses: a file of configs/comparison, read and checked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import yaml
from pydantic import Field, ValidationError

from htgrpo_ext.documents import read_yaml
from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.section import Cycles, FolderName, NonNegative, Section, Seed

Rate = Annotated[float, Field(gt=0, le=1)]
Value = int | float
Overrides = dict[str, Value | str]  # by the key of `--set`
Few = Annotated[int, Field(ge=2, le=1000)]


class Tuning(Section):
    seed: Seed
    eval_seed: Seed
    learning_rates: Annotated[list[Rate], Field(min_length=1)]
    tie: NonNegative


class Timing(Section):
    rounds: Annotated[int, Field(ge=1, le=1000)]
    cycles: Few


class OfMethod(Section):
    """What is tried of one method; configs/comparison/micro.yaml explains the fields."""

    settings: Overrides = {}
    learning_rate: Rate | None = None  # this and `value`: tuned elsewhere, so nothing is tried here
    value: Value | None = None
    setting: str
    values: list[Value] = []
    published: Overrides = {}
    variants: dict[FolderName, Overrides] = {}


class Check(Section):
    seed: Seed
    learning_rates: list[Rate]
    reported: dict[str, list[float]]  # by method, a score for each rate


class Comparison(Section):
    """The whole file. Without `tuning` every method brings its learning rate; without `timing` nothing is timed."""

    cycles: Cycles
    seeds: Annotated[list[Seed], Field(min_length=1)]
    reference: str
    budget_of: str | None = None
    tuning: Tuning | None = None
    timing: Timing | None = None
    methods: dict[FolderName, OfMethod]
    check: Check | None = None

    def problems(self) -> list[str]:
        """What is wrong between fields, one line each."""
        found = []
        for key in ("reference", "budget_of"):
            if (name := getattr(self, key)) not in (None, *self.methods):
                found.append(f"{key} `{name}` is none of the methods ({', '.join(self.methods)})")
        if (self.timing is None) != (self.budget_of is None):
            found.append("timing and budget_of belong together; give both or neither")
        if self.tuning and self.tuning.seed in self.seeds:
            found.append(f"tuning.seed {self.tuning.seed} is a seed of the comparison too; choose another")
        for name, each in self.methods.items():
            if self.tuning and (each.learning_rate or each.value is not None):
                found.append(f"methods.{name}: learning_rate and value are for files without `tuning`")
            if not self.tuning and (each.learning_rate is None or each.values):
                found.append(f"methods.{name}: without `tuning` it needs a learning_rate, and no values")
        if len({len(each.values) for each in self.methods.values()}) > 1:
            found.append("methods differ in the number of values, so their tuning would cost differently")
        if self.check and any(len(row) != len(self.check.learning_rates) for row in self.check.reported.values()):
            found.append("check.reported needs a score for each of check.learning_rates")
        return found

    def only(self, names: list[str]) -> "Comparison":
        """The same for some of the methods, in their order here. Raises UserError for one that is not here."""
        if unknown := [name for name in names if name not in self.methods]:
            raise UserError(f"unknown method `{unknown[0]}` (one of {', '.join(self.methods)})")
        methods = {name: each for name, each in self.methods.items() if name in names}
        reported = {n: row for n, row in self.check.reported.items() if n in names} if self.check else {}
        check = self.check.model_copy(update={"reported": reported}) if self.check and reported else None
        fewer = self.model_copy(update={"methods": methods, "check": check})
        if problems := fewer.problems():
            raise UserError("\n".join(problems))
        return fewer


def read_comparison(file: Path) -> Comparison:
    """Read and check such a file. Raises UserError, one line for each mistake."""
    try:
        tree = read_yaml(file.read_text(encoding="utf-8"))
        found = Comparison.model_validate_json(json.dumps(tree), strict=True)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)})") from None
    except ValidationError as error:
        lines = (f"{file}: {'.'.join(map(str, each['loc']))}: {one_line(each['msg'])}" for each in error.errors())
        raise UserError("\n".join(lines)) from None
    if problems := found.problems():
        raise UserError("\n".join(f"{file}: {problem}" for problem in problems))
    return found


Key = TypeVar("Key", int, float)


def _tied(scores: Mapping[Key, float], tie: float) -> list[Key]:
    """What scores within `tie` of the best."""
    best = max(scores.values())
    return [key for key, score in scores.items() if score >= best - tie]


def best_rate(scores: Mapping[float, float], tie: float) -> float:
    """The learning rate to take: the smallest of those that score within `tie` of the best."""
    return min(_tied(scores, tie))


def best_value(scores: Mapping[Value, float], default: Value, tie: float) -> Value:
    """The value to take: the default if it scores within `tie` of the best, else the best."""
    return default if default in _tied(scores, tie) else max(scores, key=lambda value: scores[value])
