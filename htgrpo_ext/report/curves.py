"""The curves of a run, each a small SVG of its own, so that a page can lay them out as it is wide."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

STAGE_COLORS = {"global": "#0072b2", "structure": "#d55e00", "refinement": "#009e73"}  # Okabe and Ito's
OTHER_STAGE = "#555555"
SMOOTHED_CYCLES = 5
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ad",
    "axes.grid": True,
    "grid.color": "#e9ecef",
    "axes.axisbelow": True,
    "xtick.color": "#5c6670",
    "ytick.color": "#5c6670",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "path",
    "svg.hashsalt": "htgrpo",
}


@dataclass(frozen=True)
class Curve:
    """A figure with the words that go with it."""

    title: str
    note: str
    svg: bytes


def svg(paint: Callable[[Axes], None], width: float = 4.6, height: float = 2.7) -> bytes:
    """What `paint` draws on one pair of axes, as SVG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        paint(axes)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def running_mean(values: Sequence[float], width: int = SMOOTHED_CYCLES) -> list[float]:
    """Mean of each value and up to `width` - 1 before it."""
    return [math.fsum(part) / len(part) for i in range(len(values)) for part in [values[max(0, i + 1 - width) : i + 1]]]


def curves(updates: list[dict], cycles: list[dict]) -> list[Curve]:
    """All figures of the report; `updates` and `cycles` as metrics.jsonl has them."""
    return [
        Curve("Reward", f"Mean over a cycle's rollouts; bold: over {SMOOTHED_CYCLES} cycles.", svg(_rewards(cycles))),
        Curve("KL to the base model", "Each optimizer step, by stage.", svg(_by_stage(updates, {"kl": "o"}))),
        Curve(
            "Importance ratio",
            "Dots: mean over the tokens of a step; triangles: the largest.",
            svg(_by_stage(updates, {"ratio_mean": "o", "ratio_max": "^"})),
        ),
        Curve(
            "Clipped tokens",
            "Share of a step's tokens clipped at 1 - ε (▽) and at 1 + ε (△).",
            svg(_by_stage(updates, {"clip_low": "v", "clip_high": "^"}, percent=True)),
        ),
        Curve("Gradient norm", "Before clipping, each optimizer step.", svg(_by_stage(updates, {"grad_norm": "o"}))),
        Curve("Entropy", "Of the laws tokens are drawn from, in nats.", svg(_entropies(cycles))),
        Curve("Groups without spread", "Prompts whose rollouts all scored alike: no advantage.", svg(_spread(cycles))),
        Curve("Support", "Tokens of a rollout an optimizer step trains on.", svg(_by_stage(updates, {"support": "o"}))),
        Curve("Seconds a cycle", "One part upon the other.", svg(_seconds(cycles))),
    ]


def _rewards(cycles: list[dict]) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        x = [entry["cycle"] + 1 for entry in cycles]
        rest = [key for key in cycles[0] if key.endswith("_mean") and key != "reward_mean"] if cycles else []
        palette = ["#212529", "#0072b2", "#cc79a7", "#e69f00", "#56b4e9"]
        for key, color in zip(["reward_mean", *rest], palette, strict=False):
            y = [entry[key] for entry in cycles]
            axes.plot(x, y, color=color, alpha=0.25, linewidth=1)
            axes.plot(x, running_mean(y), color=color, linewidth=2, label=key.removesuffix("_mean"))
        axes.set_xlabel("cycle")
        axes.legend(loc="upper left", ncols=3)
        axes.margins(y=0.18)

    return paint


def _by_stage(updates: list[dict], markers: dict[str, str], percent: bool = False) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        size = 16 if len(updates) < 100 else 9 if len(updates) < 400 else 5
        for stage in dict.fromkeys(entry["stage"] for entry in updates):
            color, name = STAGE_COLORS.get(stage, OTHER_STAGE), stage
            for key, marker in markers.items():
                points = [(e["step"], e[key]) for e in updates if e["stage"] == stage and e.get(key) is not None]
                if points:
                    x, y = zip(*points, strict=True)
                    y = [100 * value for value in y] if percent else y
                    axes.scatter(x, y, s=size, marker=marker, color=color, alpha=0.7, linewidths=0, label=name)
                    name = None
        axes.set_xlabel("optimizer step")
        if percent:
            axes.yaxis.set_major_formatter("{x:g} %")
        if axes.has_data():
            axes.legend(loc="upper left", ncols=3, handletextpad=0.1, markerscale=2)
        axes.margins(y=0.18)

    return paint


def _entropies(cycles: list[dict]) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        x = [entry["cycle"] + 1 for entry in cycles]
        for kind in ("structure", "refinement"):
            y = [entry[f"entropy_{kind}"] for entry in cycles]
            axes.plot(x, y, color=STAGE_COLORS[kind], linewidth=2, label=f"{kind} tokens")
        axes.set_xlabel("cycle")
        axes.legend(loc="best")
        axes.set_ylim(bottom=0)

    return paint


def _spread(cycles: list[dict]) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        axes.bar([e["cycle"] + 1 for e in cycles], [e["zero_std_groups"] for e in cycles], color="#8a94a0", width=0.8)
        axes.set_ylim(0, max([entry["groups"] for entry in cycles], default=1))
        axes.set_xlabel("cycle")
        axes.set_ylabel("of the cycle's groups")

    return paint


def _seconds(cycles: list[dict]) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        x = [entry["cycle"] + 1 for entry in cycles]
        parts = list(dict.fromkeys(part for entry in cycles for part in entry["seconds"]))
        stacked = [[entry["seconds"].get(part, 0.0) for entry in cycles] for part in parts]
        palette = ["#adb5bd", "#e69f00", "#56b4e9", "#0072b2", "#cc79a7"]
        axes.stackplot(x, stacked, labels=parts, colors=palette, alpha=0.9)
        axes.set_xlabel("cycle")
        axes.legend(loc="upper left", ncols=4)
        axes.set_ylim(0, 1.25 * max((sum(entry["seconds"].values()) for entry in cycles), default=1))

    return paint
