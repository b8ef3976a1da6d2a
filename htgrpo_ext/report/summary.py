"""summary.json: a run in one small file, made of what its folder holds."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from htgrpo_ext.benchmarks.aggregate import aggregate
from htgrpo_ext.report.folder import read_metrics, read_prompts, read_scored, write_atomically
from htgrpo_ext.settings import RunSettings


def method_label(settings: RunSettings) -> str:
    """What a comparison calls the run's method: its label, or the method's name."""
    return settings.label or settings.method.name


def write_summary(folder: Path, settings: RunSettings, peak_memory_bytes: int, seconds: dict[str, float]) -> dict:
    """Write summary.json and return what is in it.

    seconds  by part, of what the cycles do not time themselves (evaluation, say); added to the cycles' sums

    `images` is the number of images of each of the two evaluations; `gain_interval` pairs them prompt by prompt.
    `forwards` counts rows, by kind; `cycles` says over how many cycles.
    """
    prompts, cycles = read_prompts(folder), read_metrics(folder)[1]
    base, trained = (read_scored(folder, which).correct_QI for which in ("base", "trained"))
    gain = aggregate(prompts, trained.astype(float) - base, settings.eval.seed)["overall"]
    summary = {
        "name": settings.run_name,
        "method": settings.method.name,
        "label": method_label(settings),
        "seed": settings.seed,
        "base": _scores(aggregate(prompts, base, settings.eval.seed)),
        "trained": _scores(aggregate(prompts, trained, settings.eval.seed)),
        "gain": gain["score"],
        "gain_interval": [gain["low"], gain["high"]],
        "prompts": len(prompts),
        "images": base.size,
        "cycles": len(cycles),
        "forwards": _sums(cycle["forwards"] for cycle in cycles),
        "seconds": _sums([*(cycle["seconds"] for cycle in cycles), seconds]),
        "peak_memory_bytes": peak_memory_bytes,
    }
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def _scores(aggregated: dict) -> dict:
    overall = aggregated["overall"]
    return {
        "overall": overall["score"],
        "interval": [overall["low"], overall["high"]],
        "tasks": {
            task: {"score": s["score"], "interval": [s["low"], s["high"]], "images": s["images"]}
            for task, s in aggregated["tasks"].items()
        },
    }


def _sums(parts: Iterable[dict]) -> dict:
    total: Counter = Counter()
    for part in parts:
        for name, amount in part.items():
            total[name] += amount
    return dict(total)
