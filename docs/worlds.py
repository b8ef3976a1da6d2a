"""Draw docs/worlds.png: verdicts in training, in both worlds. Arguments: FIGURE LABEL=RUN_FOLDER..."""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from htgrpo_ext.report.curves import SMOOTHED_CYCLES, running_mean
from htgrpo_ext.report.folder import read_metrics


def main(target: str, *labelled: str) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained", dpi=110)
    axes = figure.subplots()
    for label, folder in (one.split("=", 1) for one in labelled):
        verdicts = [cycle["verdict_mean"] for cycle in read_metrics(Path(folder))[1]]
        axes.plot(range(1, len(verdicts) + 1), running_mean(verdicts), "--" if "free" in label else "-", label=label)
    axes.set(xlabel="cycle of 108 rollouts", title=f"share of correct rollouts, over {SMOOTHED_CYCLES} cycles")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
