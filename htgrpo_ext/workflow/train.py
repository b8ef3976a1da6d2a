"""A run from beginning to end: evaluate, train, evaluate, report."""

import resource
import sys
from pathlib import Path
from typing import Literal

import torch

from htgrpo_ext.evaluation import evaluate
from htgrpo_ext.report.page import write_report
from htgrpo_ext.report.summary import write_summary
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
    run, folder, seconds = training.run, settings.folder, {}
    judged = settings.model.name == "micro"
    with run.progress:
        if judged and not (folder / "eval" / "base.npz").exists():
            with training.backbone.reference():
                seconds["evaluation"] = evaluate(training.backbone, settings, run.processes, run.progress, "base")
        training.train()
        if judged:
            after = evaluate(training.backbone, settings, run.processes, run.progress, "trained")
            seconds["evaluation"] = seconds.get("evaluation", 0.0) + after
    run.log.close()
    if run.processes.is_main_process:
        training.save_model(folder / "model")
        if judged:
            summary = write_summary(folder, settings, peak_memory(), seconds)
            print_result(summary, folder / "summary.json", write_report(folder))
        else:
            print(f"{folder / 'model'}\n{folder / 'metrics.jsonl'}")
    return folder


def peak_memory() -> int:
    """Most memory this process has held, in bytes: on the accelerator if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def print_result(summary: dict, path: Path, report: Path) -> None:
    """The one line the user came for, and where to look."""

    def text(part: dict) -> str:
        low, high = part["interval"]
        return f"{part['overall']:.3f} [{low:.3f}, {high:.3f}]"

    print(f"{report}\n{path}")
    print(f"MicroEval  base {text(summary['base'])} → trained {text(summary['trained'])}  gain {summary['gain']:+.3f}")
