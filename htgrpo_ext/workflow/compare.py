"""`htgrpo compare`: every method with every seed, each run in a process of its own, then one table of them all.

An interrupted comparison goes on where it stopped: finished runs are kept, unfinished ones resumed.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.files import require_folder
from htgrpo_ext.report.comparison import write_comparison
from htgrpo_ext.report.folder import read_summary
from htgrpo_ext.report.summary import method_label
from htgrpo_ext.settings import RunSettings

TRAIN = (sys.executable, "-m", "htgrpo_ext.cli", "train")
REFRESH_SECONDS = 1.0
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
        if found.model_copy(update={"out": self.settings.out}) != self.settings:
            return "other"
        return "finished" if (self.folder / "summary.json").exists() else "unfinished"

    def cycles_done(self) -> int:
        metrics = self.folder / "metrics.jsonl"
        return metrics.read_bytes().count(b'"kind": "cycle"') if metrics.exists() else 0


def plan(
    files: Sequence[Path], methods: Sequence[Path], seeds: int, overrides: Sequence[str], out: Path
) -> list[Planned]:
    """The runs in the order of the table: methods as given, seeds 0, 1, ... of each.

    Raises UserError if an override sets what differs between the runs, if the runs have no evaluation to compare, if
    two methods share a label, or if a folder holds a run with other settings.
    """
    own = {"out": "--out", "seed": "--seeds", "name": "--out", "label": "a file per method"}
    for override in overrides:
        if instead := own.get(override.partition("=")[0].strip()):
            raise UserError(f"--set {override}: each run of a comparison has its own; use {instead}")
    runs: list[Planned] = []
    labelled: dict[str, Path] = {}
    for method in methods:
        given = [*files, method]
        settings = load_settings(given, list(overrides))
        label = method_label(settings)
        if settings.eval is None:
            raise UserError(f"{method}: runs are compared by their evaluation, and these would have none (eval)")
        if label in labelled:
            raise UserError(f"{labelled[label]} and {method} are both labelled `{label}`; set `label` in one of them")
        labelled[label] = method
        for seed in range(seeds):
            sets = [*overrides, f"seed={seed}", f"out={out / f'{label}-s{seed}'}"]
            arguments = (*map(str, given), *(word for one in sets for word in ("--set", one)))
            runs.append(Planned(load_settings(given, sets), arguments))
    for run in runs:
        if run.state == "other":
            raise UserError(f"{run.folder}: holds a run with other settings; remove it, or compare in another folder")
    return runs


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(runs: Sequence[Planned], jobs: int, console: Console, command: Sequence[str] = TRAIN) -> list[Planned]:
    """Run what is not finished, at most `jobs` at a time; returns the runs that failed.

    command  what trains, less its arguments
    """
    children: list[subprocess.Popen] = []
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores() // jobs)), "PYTHONUNBUFFERED": "1"}

    def train(run: Planned) -> int:
        resume = run.state == "unfinished"
        run.log.parent.mkdir(parents=True, exist_ok=True)
        with run.log.open("ab" if resume else "wb") as log:
            words = [*command, *run.arguments, *(["--resume"] if resume else [])]
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        children.append(child)
        return child.wait()

    failed = []
    pool = ThreadPoolExecutor(jobs)
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        todo = [run for run in runs if run.state != "finished"]
        if len(todo) < len(runs):
            progress.console.print(f"{len(runs) - len(todo)} of {len(runs)} runs are finished already")
        bars = {
            run.folder: progress.add_task(run.folder.name, total=run.settings.loop.cycles, start=False) for run in todo
        }
        waiting = {pool.submit(train, run): run for run in todo}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=REFRESH_SECONDS, return_when=FIRST_COMPLETED)
                for future, run in waiting.items():
                    if future.running() or future.done():
                        progress.start_task(bars[run.folder])
                        progress.update(bars[run.folder], completed=run.cycles_done())
                for future in done:
                    run = waiting.pop(future)
                    progress.stop_task(bars[run.folder])
                    said = _outcome(run, future.result())
                    progress.console.print(said, highlight=False, markup=False, soft_wrap=True)
                    if run.state != "finished":
                        failed.append(run)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.terminate()
            pool.shutdown()
    return failed


def _outcome(run: Planned, code: int) -> str:
    if run.state != "finished":
        return f"{run.folder.name}  failed with exit code {code}, see {run.log}"
    summary = read_summary(run.folder)
    scores = f"base {summary['base']['overall']:.3f} → trained {summary['trained']['overall']:.3f}"
    return f"{run.folder.name}  {scores}  {run.folder / 'report.html'}"


def compare(files: list[Path], methods: list[Path], seeds: int, jobs: int, overrides: list[str], out: Path) -> None:
    """Train every method with seeds 0 .. `seeds` - 1 and lay the runs side by side in `out`.

    Writes compare.json, .md, .png and .html, and prints the table. Runs that failed are left out of it, and
    named; then UserError is raised.
    """
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that no child outlives this process
    require_folder(out)
    runs = plan(files, methods, seeds, overrides, out)
    failed = run_all(runs, jobs, console)
    finished = [run.folder for run in runs if run not in failed]
    if finished:
        write_comparison(finished, out, console)
    if failed:
        named = "\n".join(f"{run.folder.name} failed, see {run.log}" for run in failed)
        raise UserError(f"{named}\n{len(failed)} of {len(runs)} runs failed; the same command runs them again")
