"""`htgrpo compare`: every method with every seed, each run in a process of its own, then one table of them all.

An interrupted comparison goes on where it stopped: finished runs are kept, unfinished ones resumed.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.files import require_folder
from htgrpo_ext.report.comparison import write_comparison
from htgrpo_ext.report.folder import is_whole, read_summary
from htgrpo_ext.report.summary import method_label
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.workflow.processes import Job, run_jobs, stop_on_sigterm

TRAIN = (sys.executable, "-m", "htgrpo_ext.cli", "train")
State = Literal["new", "unfinished", "finished", "other"]


@dataclass(frozen=True)
class Planned:
    """One run of the comparison: its settings, and the arguments of `htgrpo train` that give them."""

    settings: RunSettings
    arguments: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.settings.folder

    @property
    def log(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.log"

    @property
    def state(self) -> State:
        """What its folder holds already; "other" is a run with other settings."""
        config = self.folder / "config.yaml"
        if not config.exists():
            return "new"
        try:
            found = load_settings([config])
        except UserError:
            return "other"
        # What moves no weight: where a run writes, how benchmarks' images are drawn, evaluation while it trains.
        aside = {key: getattr(self.settings, key) for key in ("out", "sampling")}
        if not self.settings.benchmark:
            aside["eval"] = self.settings.eval
        if found.model_copy(update=aside) != self.settings:
            return "other"
        return "finished" if (self.folder / "summary.json").exists() else "unfinished"

    def cycles_done(self) -> int:
        metrics = self.folder / "metrics.jsonl"
        return metrics.read_bytes().count(b'"kind": "cycle"') if metrics.exists() else 0


def plan(
    files: Sequence[Path],
    methods: Sequence[Sequence[Path]],
    seeds: int,
    overrides: Sequence[str],
    out: Path,
    evaluated: bool = True,
) -> list[Planned]:
    """The runs in the order of the table: methods as given, seeds 0, 1, ... of each.

    methods    the files of each, which come after `files`: a method, and perhaps an ablation of it
    evaluated  every run must have an evaluation

    Raises UserError if an override sets what differs between the runs, if the runs have no evaluation to compare, if
    two methods share a label, or if a folder holds a run with other settings.
    """
    own = {"out": "--out", "seed": "--seeds", "name": "--out", "label": "a file per method"}
    for override in overrides:
        if instead := own.get(override.partition("=")[0].strip()):
            raise UserError(f"--set {override}: each run of a comparison has its own; use {instead}")
    runs: list[Planned] = []
    labelled: dict[str, Path] = {}
    for own_files in methods:
        given, method = [*files, *own_files], own_files[-1]
        settings = load_settings(given, list(overrides))
        label = method_label(settings)
        if evaluated and settings.benchmark is None:
            raise UserError(f"{method}: runs are compared by their evaluation, and these would have none (eval)")
        if label in labelled:
            raise UserError(f"{labelled[label]} and {method} are both labelled `{label}`; set `label` in one of them")
        labelled[label] = method
        for seed in range(seeds):
            runs.append(planned(given, [*overrides, f"seed={seed}"], out / f"{label}-s{seed}"))
    refuse_others(runs)
    return runs


def planned(files: Sequence[Path], overrides: Sequence[str], folder: Path) -> Planned:
    """The run of these settings in this folder. Raises UserError for settings that are wrong."""
    sets = [*overrides, f"out={folder}"]
    arguments = (*map(str, files), *(word for one in sets for word in ("--set", one)))
    return Planned(load_settings(files, sets), arguments)


def refuse_others(runs: Sequence[Planned]) -> None:
    """Raise UserError if the folder of one holds a run with other settings."""
    for run in runs:
        if run.state == "other":
            raise UserError(f"{run.folder}: holds a run with other settings; remove it, or compare in another folder")


def run_all(runs: Sequence[Planned], jobs: int, console: Console, command: Sequence[str] = TRAIN) -> list[Planned]:
    """Run what is not finished, at most `jobs` at a time; returns the runs that failed.

    command  what trains, less its arguments
    """
    todo = {run.folder.name: run for run in runs if run.state != "finished"}
    if len(todo) < len(runs):
        console.print(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already")
    work = [_job(run, runs, command) for run in todo.values()]
    return [todo[job.name] for job in run_jobs(work, jobs, console)]


def _job(run: Planned, runs: Sequence[Planned], command: Sequence[str]) -> Job:
    resume = ["--resume"] if run.state == "unfinished" else []
    return Job(
        name=run.folder.name,
        command=lambda: [*command, *run.arguments, *resume, *_base_of(run, runs)],
        log=run.log,
        total=run.settings.loop.cycles,
        done=run.cycles_done,
        outcome=lambda code: (run.state == "finished", _outcome(run, code)),
        appends=bool(resume),
    )


def _base_of(run: Planned, runs: Sequence[Planned]) -> list[str]:
    """Arguments that take the base model's evaluation from a finished run: it is the same for all methods and seeds."""
    if not run.settings.benchmark or run.state != "new":
        return []
    for other in runs:
        evaluation = other.folder / "eval" / "base.npz"
        if run.settings.same_base(other.settings) and other.state == "finished" and is_whole(evaluation):
            return ["--base-of", str(other.folder)]
    return []


def _outcome(run: Planned, code: int) -> str:
    if run.state != "finished":
        return f"{run.folder.name}  failed with exit code {code}, see {run.log}"
    summary = read_summary(run.folder)
    scores = "trained"
    if run.settings.benchmark:
        scores = f"base {summary['base']['overall']:.3f} → trained {summary['trained']['overall']:.3f}"
    return f"{run.folder.name}  {scores}  {run.folder / 'report.html'}"


def compare(files: list[Path], methods: list[Path], seeds: int, jobs: int, overrides: list[str], out: Path) -> None:
    """Train every method with seeds 0 .. `seeds` - 1 and lay the runs side by side in `out`.

    Writes compare.json, .md, .png and .html, and prints the table. Runs that failed are left out of it, and
    named; then UserError is raised.
    """
    console = Console()
    stop_on_sigterm()
    require_folder(out)
    runs = plan(files, [[method] for method in methods], seeds, overrides, out)
    failed = run_all(runs, jobs, console)
    finished = [run.folder for run in runs if run not in failed]
    if finished:
        write_comparison(finished, out, console)
    require_all(runs, failed)


def require_all(runs: Sequence[Planned], failed: Sequence[Planned]) -> None:
    """Raises UserError that names the runs that failed."""
    if failed:
        named = "\n".join(f"{run.folder.name} failed, see {run.log}" for run in failed)
        raise UserError(f"{named}\n{len(failed)} of {len(runs)} runs failed; the same command runs them again")
