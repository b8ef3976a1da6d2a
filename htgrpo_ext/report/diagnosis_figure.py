"""The figure of `htgrpo diagnose`: diagnosis.png."""

import math
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from htgrpo_ext.core.diagnosis import QUANTILES
from htgrpo_ext.report.curves import STYLE
from htgrpo_ext.report.diagnosis import name_of, span

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#757c84")
INK, OWN, MARGINAL = "#333333", "#d55e00", "#0072b2"


def write_figure(found: dict, path: Path) -> None:
    """Four panels: cosines of all gradients, cosines by rank, what the laws know by rank, log ratios by rank."""
    dark = {key: INK for key in STYLE if STYLE[key] == STYLE["text.color"]}
    with matplotlib.rc_context({**STYLE, **dark}):
        figure = Figure(figsize=(11, 8), layout="constrained", dpi=110)
        (cosines, ranks), (laws, ratios) = figure.subplots(2, 2)
        _cosines(cosines, found)
        _by_rank(ranks, found)
        _laws(laws, found)
        _ratios(ratios, found)
        figure.savefig(path, facecolor="white")


def _color(found: dict, method: str) -> str:
    methods = list(dict.fromkeys(record["method"] for record in found["methods"]))
    return COLORS[methods.index(method) % len(COLORS)]


def _cosines(axes: Axes, found: dict) -> None:
    records = found["methods"][::-1]
    for y, record in enumerate(records):
        color = _color(found, record["method"])
        for key, marker, shift in (("cosine", "o", 0.12), ("cosine_of_means", "D", -0.18)):
            value, error = record[key]
            if not math.isnan(value):
                shown = max(-1.15, min(1.15, value))
                error = 0.0 if math.isnan(error) else error
                face = color if marker == "o" else "white"
                axes.errorbar(shown, y + shift, xerr=error, fmt=marker, color=color, mfc=face, markersize=5)
    axes.set_yticks(range(len(records)), [name_of(record) for record in records], fontsize=8)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.axvline(1, color=INK, linewidth=0.6)
    axes.set_xlim(-0.4, 1.2)
    axes.set_title("Cosine with the exact gradient\nfilled: same rollouts; hollow: of the means")


def _by_rank(axes: Axes, found: dict) -> None:
    seen, drawn = set(), set()
    for record in found["methods"]:
        which = record["method"], record["update"]
        if "by_rank" not in record or which in drawn:  # of a stage, the first update
            continue
        drawn.add(which)
        color, style = _color(found, record["method"]), "-" if record["method"] not in seen else ":"
        seen.add(record["method"])
        y = [part["cosine"][0] for part in record["by_rank"]]
        label = record["method"] if record["update"] == "first" else f"{record['method']}, {record['update']}"
        axes.plot(range(len(y)), y, style, marker="o", markersize=4, color=color, label=label)
    count = len(found["exact"]["by_rank"])
    axes.set_xticks(range(count), [span(found["tokens"], count, i) for i in range(count)])
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.6)
    axes.set_xlabel("generation-order rank")
    axes.legend(ncols=3, loc="upper center")
    axes.set_title("Cosine of the gradients of tokens of equal ranks")


def _laws(axes: Axes, found: dict) -> None:
    parts = found["laws"]["by_rank"]
    for color, kind in ((OWN, "own"), (MARGINAL, "marginal")):
        word, source = ("own context", "prompt and context") if kind == "own" else ("fully masked", "the prompt alone")
        axes.plot([p[f"entropy_{kind}"] for p in parts], "o-", color=color, markersize=4, label=f"entropy, {word}")
        axes.plot(
            [p[f"information_{kind}"] for p in parts], "s--", color=color, markersize=4, label=f"known of {source}"
        )
    _rank_axis(axes, found, len(parts))
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.set_ylabel("nats a token")
    axes.legend(loc="upper left", ncols=2)
    axes.set_title(f"What decides a token: {found['laws']['all']['share']:.0%} of it is the prompt alone")


def _ratios(axes: Axes, found: dict) -> None:
    parts = [part["log_ratio"]["quantiles"] for part in found["laws"]["by_rank"]]
    x = range(len(parts))
    for low in range(len(QUANTILES) // 2):
        high = len(QUANTILES) - 1 - low
        label = f"{QUANTILES[low]:.1%} to {QUANTILES[high]:.1%}"
        below, above = [p[low] for p in parts], [p[high] for p in parts]
        axes.fill_between(x, below, above, color=MARGINAL, alpha=0.14 + 0.1 * low, linewidth=0, label=label)
    axes.plot(x, [p[len(QUANTILES) // 2] for p in parts], color=INK, label="median")
    _rank_axis(axes, found, len(parts))
    axes.set_ylabel("nats")
    axes.legend(loc="lower left")
    axes.set_title("Log ratio of a drawn token's probability:\nfully masked by own context")


def _rank_axis(axes: Axes, found: dict, count: int) -> None:
    axes.set_xticks(range(count), [span(found["tokens"], count, i) for i in range(count)], fontsize=8)
    axes.set_xlabel("generation-order rank")
