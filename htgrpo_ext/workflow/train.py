"""A run from beginning to end: evaluate, train, evaluate, report."""

import resource
import sys
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import Stopped, UserError
from htgrpo_ext.evaluation import evaluate
from htgrpo_ext.report.folder import is_whole
from htgrpo_ext.report.page import write_report
from htgrpo_ext.report.summary import held_out_line, measure_lines, result_line, write_summary
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.folder import held_folder
from htgrpo_ext.train.run import TrainingLoop

Loop = Literal["native", "upstream"]


def start(settings: RunSettings, loop: Loop, resume: bool) -> TrainingLoop:
    """The loop of a run, ready to train. Raises UserError."""
    if loop == "native":
        from htgrpo_ext.train.native import start as start_loop
    else:
        from htgrpo_ext.maskgrpo.launch import start as start_loop
    return start_loop(settings, resume)


def train(settings: RunSettings, loop: Loop = "native", resume: bool = False, base_of: Path | None = None) -> Path:
    """Train; evaluate before and after where the settings have a benchmark; write model, summary and report.

    base_of  a run whose evaluation of the base model is taken, instead of making it again; see `base_evaluation`

    Returns the run's folder. Raises UserError as `start` and `base_evaluation` do, or for what stops a run, and Stopped
    for a signal; the message of both says where the weights are saved.
    """
    base = base_evaluation(settings, base_of) if base_of else None
    with held_folder(settings, loop):
        training = start(settings, loop, resume)
        try:
            with training.run.progress, training.run.stop:
                return train_and_report(training, base)
        except (UserError, Stopped) as error:
            saved = [path for _, path in training.checkpoints()]
            where = f"saved in {saved[-1]}; --resume goes on from there" if saved else "nothing was trained yet"
            error.args = (f"{error}; {where}",)
            raise
        finally:
            training.run.log.close()


def base_evaluation(settings: RunSettings, other: Path) -> bytes:
    """The file with the evaluation of the base model in another run's folder.

    Raises UserError unless it is there, whole, and the one that these settings would give.
    """
    found = other / "eval" / "base.npz"
    if not settings.same_base(load_settings([other / "config.yaml"])):
        raise UserError(f"{other}: the run there has another model, sampler or evaluation (--base-of)")
    if not is_whole(found):
        raise UserError(f"{found}: no whole evaluation of the base model is there (--base-of)")
    return found.read_bytes()


def train_and_report(training: TrainingLoop, base: bytes | None = None) -> Path:
    """What `train` does with a loop that is ready; `base` is an evaluation of the base model to take."""
    run, settings, backbone = training.run, training.run.settings, training.backbone
    folder, benchmark = settings.folder, settings.benchmark
    seconds = {"evaluation": 0.0} if benchmark else {}

    def evaluated(name: str) -> None:
        if benchmark and backbone:
            task = run.progress.evaluating(name, len(benchmark.prompts()) * benchmark.images_per_prompt)
            advance, batch_size = partial(run.progress.advance, task), settings.loop.batch_size
            took = evaluate(benchmark, backbone, settings.rollout, batch_size, folder, name, advance)
            seconds["evaluation"] += took

    own = folder / "eval" / "base.npz"
    if base and run.processes.is_main_process:
        own.parent.mkdir(exist_ok=True)
        own.write_bytes(base)
    run.processes.wait_for_everyone()
    if benchmark and backbone and not is_whole(own):
        with backbone.reference():
            evaluated("base")
    training.train()
    run.require_training()
    evaluated("trained")
    run.log.close()
    if run.processes.is_main_process:
        training.save_model(folder / "model")
        summary = write_summary(folder, settings, peak_memory(), seconds)
        print(f"{write_report(folder)}\n{folder / 'summary.json'}")
        for warning in summary["warnings"]:
            print(f"warning: {warning}")
        if held_out := summary["held_out"]:
            print(held_out_line(held_out, folder))
        if benchmark or not held_out:
            print("\n".join([*measure_lines(summary, benchmark), result_line(summary, benchmark)]))
    return folder


def peak_memory() -> int:
    """Most memory this process has held, in bytes: on the accelerator if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
