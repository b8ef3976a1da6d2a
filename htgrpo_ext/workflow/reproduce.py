"""`htgrpo reproduce`: train methods side by side, generate a benchmark's images, score them, sum up.

    OUT/runs/LABEL-sN/           a run
    OUT/sets/BENCH/base/         the images of the base model, and their scores
    OUT/sets/BENCH/LABEL-sN/     those of a run
    OUT/tables/                  what `htgrpo eval summarize` makes of all sets
    OUT/logs/                    what each command said

Every stage is a command of its own (`stages.py`), and the state is what the stages left. The same command goes on after
a stop of any kind: what is finished is checked and kept, what was begun is resumed, what is broken or belongs to other
settings is refused by its name.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import yaml
from rich.console import Console

from htgrpo_ext.config import load_settings, near
from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.files import require_folder
from htgrpo_ext.imagesets import suite_named
from htgrpo_ext.imagesets.scorers import scorer_named
from htgrpo_ext.report.ablation import FULL, of_table, write_ablation
from htgrpo_ext.report.summary import method_label
from htgrpo_ext.workflow.compare import plan
from htgrpo_ext.workflow.cost import print_cost
from htgrpo_ext.workflow.processes import Job, last_words, run_jobs, stop_on_sigterm
from htgrpo_ext.workflow.stages import CLI, HTGRPO, Generate, Score, Stage, Summarize, Train

BASE = "base"
ABLATED = ("geneval", "micro")  # the scorers of whose tables an ablation's figure is made
OF_BENCHES = {"microeval": "micro", "geneval": "geneval", "dpg": "dpg"}  # the scorer that is the benchmark's own


@dataclass(frozen=True)
class Request:
    """What is to be reproduced.

    files      the model's settings, and what all methods have in common
    methods    the files of each method, which come after them
    seeds      of training: 0, 1, ..
    overrides  as of `htgrpo train`
    benches    names of suites, or files of prompts
    scorers    names; each judges the benchmarks that it can. Empty: the benchmarks' own
    limit      prompts of each task, to try it out; None: the whole benchmark
    loop       native or upstream
    htgrpo     the words that start `htgrpo`
    launch     a file of configs/accelerate: training and generating run in so many processes
    baseline   the row that the tables compare the others to; an ablation's is the full method
    ablation   the number of the paper's ablation that the methods are, for its figure
    """

    files: Sequence[Path]
    methods: Sequence[Sequence[Path]]
    seeds: int
    overrides: Sequence[str]
    benches: Sequence[str]
    scorers: Sequence[str]
    out: Path
    limit: int | None = None
    loop: str = "native"
    htgrpo: Sequence[str] = HTGRPO
    launch: Path | None = None
    baseline: str = BASE
    ablation: int | None = None

    @property
    def tables(self) -> Path:
        """Ablations share a folder, for the full method's runs; each has tables of its own."""
        return self.out / (f"tables-a{self.ablation}" if self.ablation else "tables")

    def launched(self) -> tuple[list[str], list[str]]:
        """What starts training, and generating. Raises UserError."""
        if self.launch is None:
            return [*self.htgrpo], [*self.htgrpo]
        try:
            processes = int(yaml.safe_load(self.launch.read_text())["num_processes"])
        except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.launch}: no number of processes there ({one_line(error)})") from None
        tools = Path(sys.executable).parent
        training = [str(tools / "accelerate"), "launch", "--config_file", str(self.launch), *CLI]
        return training, [str(tools / "torchrun"), "--standalone", "--nproc_per_node", str(processes), *CLI]


def stages_of(request: Request) -> list[Stage]:
    """All stages in order: every training, then every set of images, their scores, the tables.

    Raises UserError for settings that no run can have, two methods with one label, or scorers that fit no benchmark.
    """
    out, overrides = request.out, list(request.overrides)
    settings_files = [*request.files, *request.methods[0]]  # of the methods any: images do not depend on it
    settings = load_settings(settings_files, overrides)
    if settings.sampling is None:
        raise UserError("the settings have no section `sampling`, how images are drawn for a benchmark (configs/model)")
    # The benchmark's images are generated below; judging them while training too would take the time twice.
    silent = ["eval=null"] if settings.benchmark else []
    runs = plan(request.files, request.methods, request.seeds, [*overrides, *silent], out / "runs", evaluated=False)
    if BASE in (labels := [method_label(run.settings) for run in runs]):
        raise UserError(f"a method is labelled `{BASE}`, which is the model before training; set another `label`")
    baseline = FULL if request.ablation else request.baseline
    if baseline not in (BASE, *labels):
        raise UserError(f"no row is called `{baseline}` (one of {', '.join(dict.fromkeys([BASE, *labels]))})")
    training, generating = request.launched()
    logs = out / "logs"
    trains = [Train(run, label, request.loop, training, logs) for run, label in zip(runs, labels, strict=True)]
    sets = []
    for bench in request.benches:
        where = out / "sets" / (bench if bench in OF_BENCHES else Path(bench).stem)
        paint = partial(Generate, settings_files, overrides, bench, request.limit, generating, logs)
        sets.append(paint(None, BASE, where / BASE))
        sets += [paint(run, label, where / run.folder.name) for run, label in zip(runs, labels, strict=True)]
    scores = [Score(each, scorer, request.htgrpo, logs) for each in sets for scorer in scorers_of(each.bench, request)]
    tables = Summarize([each.folder for each in sets], request.tables, baseline, request.htgrpo, logs)
    return [*trains, *sets, *scores, tables]


def scorers_of(bench: str, request: Request) -> list[str]:
    """The scorers of a benchmark's images. Raises UserError if none of those asked for can judge them."""
    suite = suite_named(bench if bench in OF_BENCHES else "file").name
    if not request.scorers:
        if suite not in OF_BENCHES:
            raise UserError(f"{bench} has no scorer of its own; name some (--scorers)")
        return [OF_BENCHES[suite]]
    able = {name: scorer_named(name).suites for name in request.scorers}
    chosen = [name for name, suites in able.items() if suites is None or suite in suites]
    if not chosen:
        raise UserError(f"none of the scorers {', '.join(request.scorers)} judges images of {bench} (--scorers)")
    return chosen


def print_commands(stages: Sequence[Stage]) -> None:
    """Every command, ready to be pasted into a shell."""
    for title, group in groupby(stages, lambda stage: stage.title):
        print(f"# {title}")
        for stage in group:
            print(shlex.join(near(word) if word.startswith("/") else word for word in stage.words()))


def reproduce(request: Request, jobs: int, dry: bool = False) -> None:
    """Do all stages, or with `dry` print their commands alone.

    jobs  commands of one kind at a time

    Raises UserError for anything in the way, named, before the stage that needs it begins; and if a command fails, or
    leaves something else than it should.
    """
    stages, console = stages_of(request), Console()
    if dry:
        print_commands(stages)
        return
    model = load_settings([*request.files, *request.methods[0]], list(request.overrides)).model
    if absent := model.absent(pixels=True):
        raise UserError("\n".join(absent))
    stop_on_sigterm()
    require_folder(request.out)
    for stage in stages:
        stage.refuse_foreign()
    print_cost(stages, console)
    for title, group in groupby(stages, lambda stage: stage.title):
        of_kind = list(group)
        todo = [stage for stage in of_kind if not stage.finished()]
        done = len(of_kind) - len(todo)
        console.print(f"{title}: {done} of {len(of_kind)} are finished" if done else title, highlight=False)
        # Under a launcher the processes of one command share the cores, and it sets the threads itself.
        failed = run_jobs([_job(stage) for stage in todo], jobs, console, threads=request.launch is None)
        if failed:
            named = "\n".join(f"{job.name} failed, see {job.log}" for job in failed)
            raise UserError(f"{named}\n{len(failed)} of {len(of_kind)} failed; the same command goes on from here")
    console.print((request.out / "logs" / "summarize.log").read_text(), highlight=False, markup=False, soft_wrap=True)
    if request.ablation:
        _draw_ablation(request.ablation, stages, request.tables, console)


def _draw_ablation(number: int, stages: Sequence[Stage], tables: Path, console: Console) -> None:
    """The figure and table of an ablation, for the benchmark that the paper reports."""
    runs = {stage.label: stage.run.settings for stage in stages if isinstance(stage, Train)}
    settings = {label: (run.loop.cycles, run.method.structure_ratio) for label, run in runs.items()}
    for table in json.loads((tables / "summary.json").read_text())["tables"]:
        if table["name"] in ABLATED:
            write_ablation(of_table(number, table, settings), tables, console)


def _job(stage: Stage) -> Job:
    def outcome(code: int) -> tuple[bool, str]:
        problem = f"failed with exit code {code} ({last_words(stage.log)})" if code else _left(stage)
        return not problem, f"{stage.name}  {f'{problem}, see {stage.log}' if problem else stage.result()}"

    return Job(stage.name, stage.words, stage.log, stage.total, stage.done, outcome, appends=stage.log.exists())


def _left(stage: Stage) -> str:
    """What is wrong with what a command left that ended well; empty if nothing is."""
    try:
        return "" if stage.left() else "left no work, but exit code 0"
    except UserError as error:
        return f"left something broken: {error}"
