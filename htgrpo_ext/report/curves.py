"""The curves of a run, each a small SVG of its own, so that a page can lay them out as it is wide.

They are transparent, and their ink and colours can be read on a light page and on a dark one.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

STAGE_COLORS = {"global": "#0072b2", "structure": "#d55e00", "refinement": "#009e73"}  # Okabe and Ito's
REWARD_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
OTHER_STAGE = INK = "#757c84"
SMOOTHED_CYCLES = 5
STYLE: dict[Any, Any] = {  # of matplotlib
    "font.size": 9,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.2,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "path",
    "svg.hashsalt": "htgrpo",
}
Keys = Mapping[str, str]  # of the records, and how each is labelled or marked
Paint = Callable[[Axes, Sequence[dict], Keys], None]


class Curve(NamedTuple):
    """A figure with the words that go with it."""

    title: str
    note: str
    svg: bytes


def running_mean(values: Sequence[float], width: int = SMOOTHED_CYCLES) -> list[float]:
    """Mean of each value and up to `width` - 1 before it."""
    return [math.fsum(part) / len(part) for i in range(len(values)) for part in [values[max(0, i + 1 - width) : i + 1]]]


def curves(updates: list[dict], cycles: list[dict]) -> list[Curve]:
    """All figures of the report; `updates` and `cycles` as metrics.jsonl has them.

    A figure is left out when the records have none of its numbers: MaskGRPO as published writes fewer.
    """
    rewards = {key: key.removesuffix("_mean") for key in (cycles[0] if cycles else ()) if key.endswith("_mean")}
    entropies = {f"entropy_{kind}": kind for kind in ("structure", "refinement")}
    flat = {"zero_std_groups": "of the cycle's groups"}
    figures: list[tuple[str, str, Sequence[dict], Keys, Paint]] = [
        ("Reward", f"Mean over a cycle's rollouts; bold: over {SMOOTHED_CYCLES} cycles.", cycles, rewards, _rewards),
        ("KL to the base model", "Each optimizer step, by stage.", updates, {"kl": "o"}, _by_stage),
        (
            "Importance ratio",
            "Dots: mean over the tokens of a step; triangles: the largest. Logarithmic axis.",
            updates,
            {"ratio_mean": "o", "ratio_max": "^"},
            _ratios,
        ),
        (
            "Clipped tokens",
            "Share of a step's tokens clipped at 1 - ε (▽) and at 1 + ε (△).",
            updates,
            {"clip_low": "v", "clip_high": "^"},
            _shares,
        ),
        ("Gradient norm", "Before clipping, each optimizer step.", updates, {"grad_norm": "o"}, _by_stage),
        ("Entropy", "Mean over the sampling distributions, in nats.", cycles, entropies, _entropies),
        ("Groups without spread", "Prompts whose rollouts all scored alike: no advantage.", cycles, flat, _spread),
        ("Support", "Tokens of a rollout that an optimizer step trains on.", updates, {"support": "o"}, _by_stage),
        ("Seconds a cycle", "The parts of a cycle, stacked.", cycles, {"seconds": ""}, _seconds),
    ]
    return [
        Curve(title, note, _svg(paint, records, keys))
        for title, note, records, keys, paint in figures
        if any(record.get(key) not in (None, {}) for record in records for key in keys)
    ]


def held_out_curves(evaluations: list[dict], best: dict | None) -> list[Curve]:
    """The figures of the evaluations while training, as metrics.jsonl has them.

    best  `cycles_done` and `reward_mean` of the model that was kept
    """
    rewards = {key: key.removesuffix("_mean") for key in evaluations[0] if key.endswith("_mean")}
    paint = partial(_over_cycles, best=best)
    figures = [
        Curve(
            "Held-out reward",
            "Mean over all images. Star: the best model, in best/.",
            _svg(paint, evaluations, rewards),
        )
    ]
    if "correct" in evaluations[0]:
        words, keys = "Share of the same images that the benchmark finds correct.", {"correct": "correct"}
        figures.append(Curve("Held-out verdict", words, _svg(_over_cycles, evaluations, keys)))
    return figures


def _over_cycles(axes: Axes, evaluations: Sequence[dict], keys: Keys, best: dict | None = None) -> None:
    mixed_first = sorted(keys, key=lambda key: key != "reward_mean")
    x = [evaluation["cycles_done"] for evaluation in evaluations]
    for key, color in zip(mixed_first, REWARD_COLORS, strict=False):
        y = [evaluation[key] for evaluation in evaluations]
        axes.plot(x, y, "o-", color=color, linewidth=2, markersize=4, label=keys[key])
    if best:
        axes.plot([best["cycles_done"]], [best["reward_mean"]], "*", color=REWARD_COLORS[0], markersize=13)
    axes.legend(loc="upper left", ncols=3)
    axes.margins(y=0.22)


def _svg(paint: Paint, records: Sequence[dict], keys: Keys) -> bytes:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.subplots()
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("optimizer step" if "step" in records[0] else "cycle")
        paint(axes, records, keys)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _numbers(cycles: Sequence[dict]) -> list[int]:
    return [entry["cycle"] + 1 for entry in cycles]


def _rewards(axes: Axes, cycles: Sequence[dict], keys: Keys) -> None:
    mixed_first = sorted(keys, key=lambda key: key != "reward_mean")
    for key, color in zip(mixed_first, REWARD_COLORS, strict=False):
        y = [entry[key] for entry in cycles]
        axes.plot(_numbers(cycles), y, color=color, alpha=0.3, linewidth=1)
        axes.plot(_numbers(cycles), running_mean(y), color=color, linewidth=2, label=keys[key])
    axes.legend(loc="upper left", ncols=3)
    axes.margins(y=0.18)


def _by_stage(axes: Axes, updates: Sequence[dict], keys: Keys) -> None:
    size = 16 if len(updates) < 100 else 9 if len(updates) < 400 else 5
    for stage in dict.fromkeys(entry["stage"] for entry in updates):
        color, name = STAGE_COLORS.get(stage, OTHER_STAGE), stage
        for key, marker in keys.items():
            points = [(e["step"], e[key]) for e in updates if e["stage"] == stage and e.get(key) is not None]
            if points:
                x, y = zip(*points, strict=True)
                axes.scatter(x, y, s=size, marker=marker, color=color, alpha=0.7, linewidths=0, label=name)
                name = None
    axes.legend(loc="upper left", ncols=3, handletextpad=0.1, markerscale=2)
    axes.margins(y=0.18)


def _ratios(axes: Axes, updates: Sequence[dict], keys: Keys) -> None:
    axes.set_yscale("log")  # means stay near 1, and a single token's ratio can reach thousands
    _by_stage(axes, updates, keys)
    low, high = axes.get_ylim()
    if high < 10 * low:  # within a factor of ten a logarithmic axis has too few ticks of its own
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _shares(axes: Axes, updates: Sequence[dict], keys: Keys) -> None:
    _by_stage(axes, updates, keys)
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def _entropies(axes: Axes, cycles: Sequence[dict], keys: Keys) -> None:
    for key, kind in keys.items():
        y = [entry.get(key, math.nan) for entry in cycles]
        axes.plot(_numbers(cycles), y, color=STAGE_COLORS[kind], linewidth=2, label=f"{kind} tokens")
    axes.legend(loc="best")
    axes.set_ylim(bottom=0)


def _spread(axes: Axes, cycles: Sequence[dict], keys: Keys) -> None:
    for key, label in keys.items():
        axes.bar(_numbers(cycles), [entry[key] for entry in cycles], color="#8a94a0", width=0.8)
        axes.set_ylabel(label)
    axes.set_ylim(0, max(entry["groups"] for entry in cycles))


def _seconds(axes: Axes, cycles: Sequence[dict], keys: Keys) -> None:
    parts = list(dict.fromkeys(part for entry in cycles for part in entry["seconds"]))
    stacked = [[entry["seconds"].get(part, 0.0) for entry in cycles] for part in parts]
    palette = ["#adb5bd", "#e69f00", "#56b4e9", "#0072b2", "#cc79a7"]
    axes.stackplot(_numbers(cycles), stacked, labels=parts, colors=palette, alpha=0.9)
    axes.legend(loc="upper left", ncols=4)
    axes.set_ylim(0, 1.25 * max(sum(entry["seconds"].values()) for entry in cycles))
