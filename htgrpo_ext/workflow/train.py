"""A run from beginning to end: evaluate, train, evaluate, report."""

import resource
import sys
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from htgrpo_ext.evaluation import evaluate
from htgrpo_ext.report.page import write_report
from htgrpo_ext.report.summary import result_line, write_summary
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.run import TrainingLoop


def start(settings: RunSettings, loop: Literal["native", "upstream"], resume: bool) -> TrainingLoop:
    """The loop of a run, ready to train. Raises UserError."""
    if loop == "native":
        from htgrpo_ext.train.native import start as start_loop
    else:
        from htgrpo_ext.maskgrpo.launch import start as start_loop
    return start_loop(settings, resume)


def train(settings: RunSettings, loop: Literal["native", "upstream"] = "native", resume: bool = False) -> Path:
    """Train; evaluate before and after where the settings have a benchmark; write model, summary and report.

    Returns the run's folder. Raises UserError as `start` does.
    """
    training = start(settings, loop, resume)
    run, folder, benchmark = training.run, settings.folder, settings.eval
    seconds = {"evaluation": 0.0} if benchmark else {}

    def evaluated(name: str) -> None:
        if benchmark and training.backbone:
            task = run.progress.evaluating(name, len(benchmark.prompts()) * benchmark.images_per_prompt)
            advance, batch_size = partial(run.progress.advance, task), settings.loop.batch_size
            took = evaluate(benchmark, training.backbone, settings.rollout, batch_size, folder, name, advance)
            seconds["evaluation"] += took

    with run.progress:
        if training.backbone and not (folder / "eval" / "base.npz").exists():
            with training.backbone.reference():
                evaluated("base")
        training.train()
        evaluated("trained")
    run.log.close()
    if run.processes.is_main_process:
        training.save_model(folder / "model")
        summary = write_summary(folder, settings, peak_memory(), seconds)
        print(f"{write_report(folder)}\n{folder / 'summary.json'}\n{result_line(summary, benchmark)}")
    return folder


def peak_memory() -> int:
    """Most memory this process has held, in bytes: on the accelerator if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
