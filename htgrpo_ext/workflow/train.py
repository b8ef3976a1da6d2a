"""A run from beginning to end: evaluate, train, evaluate, report."""

import resource
import sys
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from htgrpo_ext.errors import Stopped, UserError
from htgrpo_ext.evaluation import evaluate
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


def train(settings: RunSettings, loop: Loop = "native", resume: bool = False) -> Path:
    """Train; evaluate before and after where the settings have a benchmark; write model, summary and report.

    Returns the run's folder. Raises UserError as `start` does, or for what stops a run, and Stopped for a signal; the
    message of both says where the weights are saved.
    """
    with held_folder(settings, loop):
        training = start(settings, loop, resume)
        try:
            with training.run.progress, training.run.stop:
                return train_and_report(training)
        except (UserError, Stopped) as error:
            saved = [path for _, path in training.checkpoints()]
            where = f"saved in {saved[-1]}; --resume goes on from there" if saved else "nothing was trained yet"
            error.args = (f"{error}; {where}",)
            raise
        finally:
            training.run.log.close()


def train_and_report(training: TrainingLoop) -> Path:
    """What `train` does with a loop that is ready."""
    run, settings, backbone = training.run, training.run.settings, training.backbone
    folder, benchmark = settings.folder, settings.benchmark
    seconds = {"evaluation": 0.0} if benchmark else {}

    def evaluated(name: str) -> None:
        if benchmark and backbone:
            task = run.progress.evaluating(name, len(benchmark.prompts()) * benchmark.images_per_prompt)
            advance, batch_size = partial(run.progress.advance, task), settings.loop.batch_size
            took = evaluate(benchmark, backbone, settings.rollout, batch_size, folder, name, advance)
            seconds["evaluation"] += took

    if benchmark and backbone and not is_readable(folder / "eval" / "base.npz"):
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


def is_readable(evaluation: Path) -> bool:
    """Whether an evaluation is there and whole; one that is not is made again."""
    try:
        with np.load(evaluation) as arrays:
            return all(arrays[name] is not None for name in arrays.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def peak_memory() -> int:
    """Most memory this process has held, in bytes: on the accelerator if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
