"""The runs of a comparison of tuned methods: what each is, which are known by now, and what they give together.

Runs are named by their settings, so that stages share those that are equal:

    OUT/LABEL-lrRATE[-...][-cCYCLES]-sSEED/   a run
    OUT/timing/LABEL-ROUND/                   a run that was only timed
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from htgrpo_ext.config import config_files, load_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.report.folder import read_metrics, read_summary
from htgrpo_ext.report.tuned_data import gather, median_seconds, short_rate
from htgrpo_ext.train.log import flatten
from htgrpo_ext.workflow.compare import Planned, planned
from htgrpo_ext.workflow.tuning import Comparison, Overrides, Value, best_rate, best_value


class Stage(NamedTuple):
    """The runs that are known by now, and words for those that depend on others."""

    title: str
    runs: list[Planned]
    later: list[str]


class Choice(NamedTuple):
    """What the tuning of a method chose."""

    rate: float
    value: Value


@dataclass(frozen=True)
class Tuned:
    """All runs of such a comparison. What a choice needs is read from the folders of finished runs, once."""

    comparison: Comparison
    files: tuple[Path, ...]
    overrides: tuple[str, ...]
    out: Path
    _defaults: dict[str, Value] = field(default_factory=dict)
    _runs: dict[tuple, Planned] = field(default_factory=dict)
    _choices: dict[str, Choice] = field(default_factory=dict)
    _seconds: dict[str, list[list[float]]] = field(default_factory=dict)

    # --- runs --------------------------------------------------------------------------------------------------

    def run(
        self,
        method: str,
        rate: float,
        seed: int,
        value: Value | None = None,
        tag: str = "",
        extra: Overrides | None = None,
        cycles: int | None = None,
        tuning: bool = False,
    ) -> Planned:
        """One run; its folder's name says in what it differs from the method's default settings.

        value   of the method's own setting; None: the default
        tag     names `extra`, further settings
        cycles  None: the comparison's
        tuning  under the evaluation's noise of the tuning
        """
        of, name = self.comparison.methods[method], f"{method}-lr{short_rate(rate)}"
        sets: Overrides = {"loop.cycles": cycles or self.comparison.cycles, "loop.learning_rate": rate, "seed": seed}
        sets |= {"eval.seed": self.comparison.tuning.eval_seed} if tuning and self.comparison.tuning else {}
        sets |= of.settings
        if value is not None and value != self.default(method):
            sets[of.setting] = value
            name += f"-{of.setting.rpartition('.')[2]}{value:g}"
        sets |= extra or {}
        name += f"-{tag}" if tag else ""
        name += f"-c{cycles}" if cycles not in (None, self.comparison.cycles) else ""
        return self._planned(method, sets, self.out / f"{name}-s{seed}")

    def timing(self, method: str, round_: int, choice: Choice, cycles: int) -> Planned:
        """A short run without evaluation."""
        of = self.comparison.methods[method]
        sets: Overrides = {"loop.cycles": cycles, "loop.learning_rate": choice.rate}
        sets |= {"seed": self.comparison.seeds[0], "eval": "null"} | of.settings | {of.setting: choice.value}
        return self._planned(method, sets, self.out / "timing" / f"{method}-{round_}")

    def _planned(self, method: str, sets: Overrides, folder: Path) -> Planned:
        given = [f"{key}={value}" for key, value in sets.items()]
        if (key := (folder, *given)) not in self._runs:
            files = [*self.files, *config_files("method", method)]
            self._runs[key] = planned(files, [*self.overrides, *given], folder)
        return self._runs[key]

    def default(self, method: str) -> Value:
        """The default value of the method's own setting. Raises UserError if it is no number."""
        if method not in self._defaults:
            key = self.comparison.methods[method].setting
            settings = load_settings([*self.files, *config_files("method", method)], self.overrides)
            value = flatten(settings.model_dump(mode="json"), ".").get(key)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"setting {key} is no number in the method's file, so no values of it can be tried")
            self._defaults[method] = value
        return self._defaults[method]

    def values(self, method: str) -> list[Value]:
        """All values of the method's own setting that are tried, in order."""
        return sorted({self.default(method), *self.comparison.methods[method].values})

    # --- choices -----------------------------------------------------------------------------------------------

    def grid(self, method: str) -> dict[float, Planned]:
        """The tuning runs of stage 1, by learning rate; none if nothing is tuned here."""
        if (tuning := self.comparison.tuning) is None:
            return {}
        return {rate: self.run(method, rate, tuning.seed, tuning=True) for rate in tuning.learning_rates}

    def rate(self, method: str) -> float | None:
        """The best learning rate; None before the runs are there."""
        if (tuning := self.comparison.tuning) is None:
            return self.comparison.methods[method].learning_rate
        scores = _scores(self.grid(method))
        return None if scores is None else best_rate(scores, tuning.tie)

    def at_rate(self, method: str, rate: float) -> dict[Value, Planned]:
        """The tuning runs at one rate, by value; none if nothing is tuned here."""
        if (tuning := self.comparison.tuning) is None:
            return {}
        return {value: self.run(method, rate, tuning.seed, value, tuning=True) for value in self.values(method)}

    def choice(self, method: str) -> Choice | None:
        """What the tuning chose, here or elsewhere; None before its runs are there."""
        if method not in self._choices:
            if (rate := self.rate(method)) is None or (scores := _scores(self.at_rate(method, rate))) is None:
                return None
            value, default = self.comparison.methods[method].value, self.default(method)
            if tuning := self.comparison.tuning:
                value = best_value(scores, default, tuning.tie)
            self._choices[method] = Choice(rate, default if value is None else value)
        return self._choices[method]

    def tuned(self, method: str, choice: Choice, cycles: int | None = None) -> list[Planned]:
        """The runs of the comparison, one per seed."""
        return [self.run(method, choice.rate, seed, choice.value, cycles=cycles) for seed in self.comparison.seeds]

    def extras(self, method: str, choice: Choice) -> dict[str, list[Planned]]:
        """The variants at the tuned settings by name, and `published`, if the method has such."""
        of, seeds = self.comparison.methods[method], self.comparison.seeds
        found = {
            tag: [self.run(method, choice.rate, seed, choice.value, tag, extra) for seed in seeds]
            for tag, extra in of.variants.items()
        }
        if of.published:  # the method's own setting is at its default where they do not name it
            found["published"] = [
                self.run(method, choice.rate, seed, None, "published", of.published) for seed in seeds
            ]
        return found

    def checks(self, method: str) -> dict[float, Planned]:
        check = self.comparison.check
        if check is None or method not in check.reported:
            return {}
        return {rate: self.run(method, rate, check.seed) for rate in check.learning_rates}

    def timings(self, method: str) -> list[Planned] | None:
        if (timing := self.comparison.timing) is None or (choice := self.choice(method)) is None:
            return None
        return [self.timing(method, number, choice, timing.cycles) for number in range(1, timing.rounds + 1)]

    def seconds(self, method: str) -> list[list[float]] | None:
        """Seconds of scoring and updates of each timed cycle, by run; None before all were timed."""
        if method not in self._seconds:
            runs = self.timings(method)
            if runs is None or any(run.state != "finished" for run in runs):
                return None
            parts = [[cycle["seconds"] for cycle in read_metrics(run.folder)[1][1:]] for run in runs]
            self._seconds[method] = [[each.get("score", 0.0) + each.get("update", 0.0) for each in p] for p in parts]
        return self._seconds[method]

    def cycles_of_budget(self, method: str) -> int | None:
        """How many whole cycles the budget of seconds holds, at least 1; None before they were measured."""
        if self.comparison.budget_of is None:
            return None
        own, budget = self.seconds(method), self.seconds(self.comparison.budget_of)
        if own is None or budget is None:
            return None
        return cycles_within(self.comparison.cycles * median_seconds(budget), median_seconds(own))

    # --- stages ------------------------------------------------------------------------------------------------

    def grid_stage(self) -> Stage:
        return Stage("learning rates", [run for m in self.comparison.methods for run in self.grid(m).values()], [])

    def value_stage(self) -> Stage:
        runs, later = [], []
        for method, of in self.comparison.methods.items():
            if rate := self.rate(method):
                runs += [run for run in self.at_rate(method, rate).values() if run not in self.grid(method).values()]
            else:
                later.append(f"{method}: {len(of.values)} values of {of.setting} at its best rate")
        return Stage("one setting of each method, at its best rate", runs, later)

    def compare_stage(self) -> Stage:
        runs, later = [], []
        for method, of in self.comparison.methods.items():
            runs += self.checks(method).values()
            if choice := self.choice(method):
                runs += self.tuned(method, choice)
                runs += [run for extra in self.extras(method, choice).values() for run in extra]
            else:
                rows = ["tuned", *of.variants, *(["published"] if of.published else [])]
                later.append(f"{method}: {len(self.comparison.seeds)} seeds each of {', '.join(rows)}")
        return Stage("tuned methods, variants, published settings", list({r.folder: r for r in runs}.values()), later)

    def timing_stage(self) -> Stage:
        title = "seconds a cycle, one run at a time"
        if (timing := self.comparison.timing) is None:
            return Stage(title, [], [])
        of_methods = {method: self.timings(method) for method in self.comparison.methods}
        later = [f"{method}: {timing.rounds} runs" for method, runs in of_methods.items() if not runs]
        in_turn = zip(*(runs for runs in of_methods.values() if runs), strict=True)
        return Stage(title, [run for round_ in in_turn for run in round_], later)

    def seconds_stage(self) -> Stage:
        if self.comparison.budget_of is None:
            return Stage("equal seconds", [], [])
        runs, later = [], []
        for method in self.comparison.methods:
            choice, cycles = self.choice(method), self.cycles_of_budget(method)
            if choice and cycles:
                runs += self.tuned(method, choice, cycles)
            else:
                later.append(f"{method}: {len(self.comparison.seeds)} seeds for the seconds of {self.budget}")
        return Stage(f"equal seconds: those of {self.budget}", runs, later)

    @property
    def budget(self) -> str:
        return f"{self.comparison.cycles} cycles of {self.comparison.budget_of}"

    @property
    def stages(self) -> list[Callable[[], Stage]]:
        return [self.grid_stage, self.value_stage, self.compare_stage, self.timing_stage, self.seconds_stage]

    # --- data --------------------------------------------------------------------------------------------------

    def data(self) -> dict:
        """What the tables are made of; parts whose runs are not all finished are left out."""
        comparison, methods = self.comparison, list(self.comparison.methods)
        choices = {method: choice for method in methods if (choice := self.choice(method))}
        grid = {m: {short_rate(rate): run for rate, run in self.grid(m).items()} for m in methods}
        seconds = {method: found for method in methods if (found := self.seconds(method))}
        longer = {m: self.tuned(m, choices[m], c) for m in choices if (c := self.cycles_of_budget(m))}
        extras = {(m, tag): runs for m, choice in choices.items() for tag, runs in self.extras(m, choice).items()}
        return gather(
            comparison.model_dump(mode="json"),
            {m: {"rate": c.rate, "value": c.value, "default": self.default(m)} for m, c in choices.items()},
            {
                "grid": {m: _folders(runs) for m, runs in grid.items()},
                "values": {
                    m: _folders({f"{value:g}": run for value, run in self.at_rate(m, c.rate).items()})
                    for m, c in choices.items()
                },
                "equal_rollouts": {m: _folders(self.tuned(m, choice)) for m, choice in choices.items()},
                "variants": {f"{m}, {t}": _folders(runs) for (m, t), runs in extras.items() if t != "published"},
                "published": {m: _folders(runs) for (m, t), runs in extras.items() if t == "published"},
                "equal_seconds": {m: _folders(runs) for m, runs in longer.items()},
                "check": {
                    m: _folders({short_rate(rate): run for rate, run in self.checks(m).items()})
                    for m in methods
                    if self.checks(m)
                },
            },
            seconds,
        )


def _scores(runs: dict) -> dict | None:
    """The scores of finished runs, by what they are called; None if one is missing."""
    if any(run.state != "finished" for run in runs.values()):
        return None
    return {key: read_summary(run.folder)["trained"]["overall"] for key, run in runs.items()}


def _folders(runs: dict[str, Planned] | list[Planned]) -> dict[str, Path] | list[Path] | None:
    """Their folders; None if one is not finished."""
    of = list(runs.values()) if isinstance(runs, dict) else runs
    if any(run.state != "finished" for run in of):
        return None
    return {key: run.folder for key, run in runs.items()} if isinstance(runs, dict) else [run.folder for run in of]


def cycles_within(budget: float, each: float) -> int:
    """How many whole cycles of `each` seconds a budget holds, at least 1; with slack for rounding."""
    return max(1, int(budget / each + 1e-9))
