"""`htgrpo compare --tune`: tune every method with equal effort, then compare them at equal rollouts and equal seconds.

Stages, each of which needs the results of those before it:

1. Every method at every learning rate of the grid.
2. At its best rate, other values of its most sensitive setting.
3. The tuned methods with the seeds of the comparison; variants and published settings; the check.
4. Seconds of scoring and updates a cycle: runs one at a time, the methods in turn.
5. The tuned methods for as many cycles as the budget of seconds holds.

Finished runs are kept, unfinished ones resumed. OUT/tables holds the data of all of them, and the tables made from it.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from htgrpo_ext.errors import UserError
from htgrpo_ext.files import require_folder
from htgrpo_ext.report.summary import method_label
from htgrpo_ext.report.tuned import remake, write_tuned
from htgrpo_ext.workflow.compare import refuse_others, require_all, run_all
from htgrpo_ext.workflow.processes import stop_on_sigterm
from htgrpo_ext.workflow.tuned_runs import Choice, Tuned
from htgrpo_ext.workflow.tuning import read_comparison

OF_THE_FILE = ("out", "seed", "name", "label", "loop.cycles", "loop.learning_rate")


def compare_tuned(
    files: Sequence[Path], plan: Path, methods: str, jobs: int, overrides: Sequence[str], out: Path, dry: bool
) -> None:
    """Do all stages, and write the tables whenever there is something new to say; or with `dry` list the runs alone.

    plan     a file of configs/comparison
    methods  names with commas between, to take only some of its methods; empty: all

    Raises UserError for anything in the way, and if a run fails, after the others of its stage.
    """
    comparison = read_comparison(plan)
    if names := [name for name in map(str.strip, methods.split(",")) if name]:
        comparison = comparison.only(names)
    for override in overrides:
        if (key := override.partition("=")[0].strip()) in OF_THE_FILE:
            raise UserError(f"--set {override}: {plan} says it for every run; take `{key}` out")
    tuned, console = Tuned(comparison, tuple(files), tuple(overrides), out), Console()
    _try_all(tuned, plan)
    if dry:
        print_runs(tuned, console)
        return
    stop_on_sigterm()
    require_folder(out)
    for make in tuned.stages:
        refuse_others(make().runs)
    for number, make in enumerate(tuned.stages, 1):
        if not (stage := make()).runs:
            continue
        console.print(f"{number} of {len(tuned.stages)}  {stage.title}: {len(stage.runs)} runs", highlight=False)
        refuse_others(stage.runs)
        alone = make == tuned.timing_stage
        require_all(stage.runs, run_all(stage.runs, 1 if alone else jobs, console))
        if make not in (tuned.grid_stage, tuned.timing_stage):  # these alone change no table
            write_tuned(tuned.data(), out / "tables")
    remake(out / "tables", console)


def _try_all(tuned: Tuned, plan: Path) -> None:
    """Make every run's settings once, whatever the tuning will choose. Raises UserError with the file's name."""
    for method in tuned.comparison.methods:
        try:
            if method_label(tuned.run(method, 1e-4, 0).settings) != method:
                raise UserError(f"methods.{method}: its file in configs/method has another label")
            if tuned.run(method, 1e-4, 0).settings.benchmark is None:
                raise UserError("runs are compared by their evaluation, and these would have none (eval)")
            for value in tuned.values(method):
                choice = Choice(1e-4, value)
                tuned.extras(method, choice)
                tuned.run(method, choice.rate, 0, value, tuning=True)
                if timing := tuned.comparison.timing:
                    tuned.timing(method, 1, choice, timing.cycles)
        except UserError as error:
            raise UserError("\n".join(f"{plan}: methods.{method}: {line}" for line in str(error).split("\n"))) from None


def print_runs(tuned: Tuned, console: Console) -> None:
    """Every run that is known by now with its state, and what depends on others."""
    for number, make in enumerate(tuned.stages, 1):
        if not (stage := make()).runs and not stage.later:
            continue
        done = sum(run.state == "finished" for run in stage.runs)
        console.print(f"{number}. {stage.title}: {done} of {len(stage.runs)} known runs finished", highlight=False)
        for run in stage.runs:
            cycles, state = run.settings.loop.cycles, run.state
            state = {
                "unfinished": f"{run.cycles_done()} of {cycles} cycles",
                "other": "HOLDS A RUN WITH OTHER SETTINGS",
            }.get(state, state)
            console.print(f"   {str(run.folder.relative_to(tuned.out)):50} {cycles:4} cycles  {state}", highlight=False)
        for words in stage.later:
            console.print(f"   later  {words}", highlight=False)
