"""summary.json: a run in one small file, made of what its folder holds."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import numpy as np

from htgrpo_ext.benchmarks.aggregate import aggregate
from htgrpo_ext.benchmarks.base import Benchmark
from htgrpo_ext.files import write_atomically
from htgrpo_ext.report.folder import Scored, read_best, read_held_out, read_metrics, read_prompts, read_scored
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.log import finite_or_none

MANY_LOST = 0.05  # share of all groups; a few are no reason to distrust a run, and metrics.jsonl counts them


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
    run without a benchmark has None in place of the evaluation's numbers; `measures` is there if the benchmark has any.
    `reward` is the mean of the first and of the last cycles. `held_out` is what came of the evaluations while training,
    None without them. `forwards` counts rows, by kind; `cycles` says over how many cycles.
    """
    (updates, cycles), held_out = read_metrics(folder), read_held_out(folder)
    evaluation = ({"evaluation": each["seconds"]} for each in held_out)
    compared = compared_cycles(len(cycles))
    summary = {
        "name": settings.run_name,
        "method": settings.method.name,
        "label": method_label(settings),
        "seed": settings.seed,
        **_evaluation(folder, settings.benchmark),
        "reward": [_mean_reward(cycles[:compared]), _mean_reward(cycles[-compared:])],
        "cycles": len(cycles),
        "forwards": _sums(cycle.get("forwards", {}) for cycle in cycles),
        "seconds": _sums([*(cycle["seconds"] for cycle in cycles), seconds, *evaluation]),
        "peak_memory_bytes": peak_memory_bytes,
        "held_out": _held_out(folder, settings, held_out),
        "warnings": warnings_of(updates, cycles, held_out),
    }
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def warnings_of(updates: list[dict], cycles: list[dict], held_out: list[dict]) -> list[str]:
    """What a reader of the results must know first, one sentence each: what was lost, and how much of it."""
    lost, groups = (sum(cycle.get(key, 0) for cycle in cycles) for key in ("failed_groups", "groups"))
    silent = sum(math.isnan(cycle["reward_mean"]) for cycle in cycles)
    skipped = sum(bool(update.get("skipped")) for update in updates)
    unscored, images = (sum(each[key] for each in held_out) for key in ("lost_images", "images"))
    found = []
    if lost > MANY_LOST * groups:
        found.append(f"{lost:,} of {groups:,} groups were not trained on, because a reward failed to score them")
    if silent:
        found.append(f"{silent:,} of {len(cycles):,} cycles had no reward at all, and trained nothing")
    if skipped:
        why = "the loss or the gradient was not a finite number"
        found.append(f"{skipped:,} of {len(updates):,} updates were skipped, because {why}")
    if unscored:
        found.append(f"{unscored:,} of {images:,} held-out images were not scored, because a reward failed")
    return found


def held_out_line(held_out: dict, folder: Path) -> str:
    """What the held-out prompts say of a run, for the terminal."""
    scores = ("none" if held_out[when] is None else f"{held_out[when]:.3f}" for when in ("before", "after"))
    line = f"held-out reward  {' → '.join(scores)}"
    if best := held_out["best"]:
        line += f"  best {best['reward_mean']:.3f} after cycle {best['cycles_done']}, kept in {folder / 'best'}"
    return line


def result_line(summary: dict, benchmark: Benchmark | None) -> str:
    """What the run achieved: scores before and after, or rewards where nothing was judged."""
    if benchmark is None:
        first, last = ("none" if reward is None else f"{reward:.3f}" for reward in summary["reward"])
        return f"reward  first cycles {first} → last cycles {last}"
    scores = [
        f"{name} {summary[name]['overall']:.3f} [{', '.join(f'{end:.3f}' for end in summary[name]['interval'])}]"
        for name in ("base", "trained")
    ]
    return f"{benchmark.title}  {' → '.join(scores)}  gain {summary['gain']:+.3f}"


def measure_lines(summary: dict, benchmark: Benchmark | None) -> list[str]:
    """What else the benchmark measured, one line each."""
    if benchmark is None:
        return []
    lines = []
    for name, words in benchmark.measures.items():
        found = summary["measures"][name]
        numbers = found.get("lacking") or f"{found['base']['score']:.3f} → {found['trained']['score']:.3f}"
        lines.append(f"  {words}: {numbers}")
    return lines


def _evaluation(folder: Path, benchmark: Benchmark | None) -> dict:
    if benchmark is None:
        return dict.fromkeys(("base", "trained", "gain", "gain_interval", "prompts", "images"))
    prompts = read_prompts(folder)
    scored = [read_scored(folder, which) for which in ("base", "trained")]
    base, trained = (each.correct_QI for each in scored)
    gain = benchmark.summarise(prompts, trained.astype(float) - base)["overall"]
    return {
        "base": _scores(benchmark.summarise(prompts, base)),
        "trained": _scores(benchmark.summarise(prompts, trained)),
        "gain": gain["score"],
        "gain_interval": [gain["low"], gain["high"]],
        "prompts": len(prompts),
        "images": base.size,
    } | ({"measures": _measures(benchmark, prompts, *scored)} if benchmark.measures else {})


def _measures(benchmark: Benchmark, prompts: list[dict], base: Scored, trained: Scored) -> dict:
    """Each measure summed up like the verdicts, or why it is lacking; the gain is paired prompt by prompt."""
    found = {}
    for name in benchmark.measures:
        before, after = (scored.measures.get(name, "not measured") for scored in (base, trained))
        if isinstance(before, str) or isinstance(after, str):
            found[name] = {"lacking": before if isinstance(before, str) else after}
            continue
        parts = {"base": before, "trained": after, "gain": after - before}
        scores = {part: benchmark.summarise(prompts, values)["overall"] for part, values in parts.items()}
        found[name] = {
            part: {"score": score["score"], "interval": [score["low"], score["high"]]} for part, score in scores.items()
        }
    return found


def _held_out(folder: Path, settings: RunSettings, evaluations: list[dict]) -> dict | None:
    """Mean rewards of the first and the last evaluation, and of the best one; the gain is paired prompt by prompt."""
    if not evaluations or settings.eval is None:
        return None
    first, last = evaluations[0], evaluations[-1]
    before_QI, after_QI = (np.array(each["rewards"], dtype=np.float64) for each in (first, last))
    gain_QI = (after_QI - before_QI)[~np.isnan(after_QI - before_QI).any(1)]  # of prompts that were scored both times
    gain = aggregate([{"tag": ""}] * len(gain_QI), gain_QI, settings.eval.seed)["overall"] if len(gain_QI) else None
    return {
        "prompts": len(before_QI),
        "images": before_QI.size,
        "evaluations": len(evaluations),
        "before": finite_or_none(first["reward_mean"]),
        "after": finite_or_none(last["reward_mean"]),
        "gain": gain and gain["score"],
        "gain_interval": gain and [gain["low"], gain["high"]],
        "best": read_best(folder),
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
