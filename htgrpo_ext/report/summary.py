"""summary.json: a run in one small file, made of what its folder holds."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from htgrpo_ext.benchmarks.base import Benchmark
from htgrpo_ext.files import write_atomically
from htgrpo_ext.report.folder import read_metrics, read_prompts, read_scored
from htgrpo_ext.settings import RunSettings


def method_label(settings: RunSettings) -> str:
    """What a comparison calls the run's method: its label, or the method's name."""
    return settings.label or settings.method.name


def compared_cycles(cycles: int) -> int:
    """How many cycles at the start and at the end of a run are compared by their mean reward: 5, or half of a few."""
    return max(1, min(5, cycles // 2))


def write_summary(folder: Path, settings: RunSettings, peak_memory_bytes: int, seconds: dict[str, float]) -> dict:
    """Write summary.json and return what is in it.

    seconds  by part, of what the cycles do not time themselves (evaluation, say); added to the cycles' sums

    `images` is the number of images of each of the two evaluations; `gain_interval` pairs them prompt by prompt. A
    run without a benchmark has None in place of the evaluation's numbers. `reward` is the mean of the first and of
    the last cycles. `forwards` counts rows, by kind; `cycles` says over how many cycles.
    """
    cycles = read_metrics(folder)[1]
    compared = compared_cycles(len(cycles))
    summary = {
        "name": settings.run_name,
        "method": settings.method.name,
        "label": method_label(settings),
        "seed": settings.seed,
        **_evaluation(folder, settings.eval),
        "reward": [_mean_reward(cycles[:compared]), _mean_reward(cycles[-compared:])],
        "cycles": len(cycles),
        "forwards": _sums(cycle.get("forwards", {}) for cycle in cycles),
        "seconds": _sums([*(cycle["seconds"] for cycle in cycles), seconds]),
        "peak_memory_bytes": peak_memory_bytes,
    }
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def result_line(summary: dict, benchmark: Benchmark | None) -> str:
    """What the run achieved: scores before and after, or rewards where nothing was evaluated."""
    if benchmark is None:
        first, last = ("none" if reward is None else f"{reward:.3f}" for reward in summary["reward"])
        return f"reward  first cycles {first} → last cycles {last}"
    scores = [
        f"{name} {summary[name]['overall']:.3f} [{', '.join(f'{end:.3f}' for end in summary[name]['interval'])}]"
        for name in ("base", "trained")
    ]
    return f"{benchmark.title}  {' → '.join(scores)}  gain {summary['gain']:+.3f}"


def _evaluation(folder: Path, benchmark: Benchmark | None) -> dict:
    if benchmark is None:
        return dict.fromkeys(("base", "trained", "gain", "gain_interval", "prompts", "images"))
    prompts = read_prompts(folder)
    base, trained = (read_scored(folder, which).correct_QI for which in ("base", "trained"))
    gain = benchmark.summarise(prompts, trained.astype(float) - base)["overall"]
    return {
        "base": _scores(benchmark.summarise(prompts, base)),
        "trained": _scores(benchmark.summarise(prompts, trained)),
        "gain": gain["score"],
        "gain_interval": [gain["low"], gain["high"]],
        "prompts": len(prompts),
        "images": base.size,
    }


def _scores(summarised: dict) -> dict:
    overall = summarised["overall"]
    return {
        "overall": overall["score"],
        "interval": [overall["low"], overall["high"]],
        "tasks": {
            task: {"score": s["score"], "interval": [s["low"], s["high"]], "images": s["images"]}
            for task, s in summarised["tasks"].items()
        },
    }


def _mean_reward(cycles: list[dict]) -> float | None:
    scored = [reward for cycle in cycles if not math.isnan(reward := cycle["reward_mean"])]
    return fmean(scored) if scored else None


def _sums(parts: Iterable[dict]) -> dict:
    total: Counter = Counter()
    for part in parts:
        for name, amount in part.items():
            total[name] += amount
    return dict(total)
