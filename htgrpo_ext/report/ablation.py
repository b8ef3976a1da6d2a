"""One of the paper's five ablations: every variant beside the full method, as JSON, Markdown and a figure.

S seeds, Q prompts, I images per prompt.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from htgrpo_ext.benchmarks import Benchmark, benchmark_of
from htgrpo_ext.errors import UserError
from htgrpo_ext.files import write_atomically
from htgrpo_ext.report.curves import STYLE
from htgrpo_ext.report.folder import read_config, read_prompts, read_scored, read_summary
from htgrpo_ext.report.tables import Grid, markdown, terminal

FULL = "htgrpo"  # the label of the full method, the reference row
STAR = "*: differs from the full method beyond the noise"
PAPERS_BASE = 0.56  # MMaDA's GenEval overall in the paper's Table 3
OURS, PAPERS, MUTED, INK = "#0072b2", "#9aa3ad", "#66707a", "#222222"


@dataclass(frozen=True)
class Ablation:
    """What an ablation is about, and what the paper's text says of it: GenEval overall, MMaDA."""

    title: str
    joined: str  # between the words of a variant's name
    paper: Mapping[str, float]  # by label; the other bars of its Figure 4 are a picture without numbers
    between: tuple[float, float] | None = None  # where the text gives one range for all variants


ABLATIONS = {
    1: Ablation("A1: stages (those of a variant share the updates evenly)", " + ", {FULL: 0.833}, (0.783, 0.802)),
    2: Ablation("A2: budget of the stages (global : structure : refinement)", ":", {FULL: 0.833}),
    3: Ablation(
        "A3: annealing of the sampling rate",
        " ",
        {FULL: 0.8331, "a3-constant-full": 0.7982, "a3-fixed-sparse": 0.8043, "a3-up": 0.8241},
    ),
    4: Ablation("A4: structure ratio rho", " ", {FULL: 0.833, "a4-small-ratio": 0.802}),
    5: Ablation(
        "A5: credit weights and context", " ", {FULL: 0.833, "a5-uniform-credit": 0.808, "a5-revealed-structure": 0.806}
    ),
}
NOTE = (
    "Scores are means over seeds; brackets are 95 % intervals over prompts and seeds. A difference is the variant less "
    "the full method, paired by prompt. It is beyond the noise if its interval excludes 0. Of 20 such intervals about "
    "one excludes 0 by chance."
)
PAPER_NOTE = "The paper's column is GenEval overall with MMaDA-8B, another model and another benchmark."


def of_runs(number: int, runs: Mapping[str, Sequence[Path]]) -> dict:
    """The numbers of an ablation, from runs that were evaluated.

    runs  by label: the folders of the same seeds in the same order; the first is the full method

    Raises UserError if the runs were not evaluated alike.
    """
    folders = [folder for of_label in runs.values() for folder in of_label]
    benchmark = benchmark_of(read_config(folders[0]))
    unlike = [folder for folder in folders if benchmark_of(read_config(folder)) != benchmark]
    if benchmark is None or unlike:
        raise UserError(f"{[*unlike, folders[0]][0]}: only runs that were evaluated alike can be compared (eval)")
    ablation = ABLATIONS[number]
    base = read_summary(folders[0])["base"]
    return {
        "ablation": number,
        "title": ablation.title,
        "benchmark": benchmark.title,
        "seeds": len(runs[FULL]),
        "cycles": read_summary(folders[0])["cycles"],
        "base": {"mean": base["overall"], "interval": base["interval"]},
        "rows": [_row(label, of_label, runs[FULL], ablation, benchmark) for label, of_label in runs.items()],
        "paper_between": ablation.between,
    }


def of_table(number: int, table: Mapping, settings: Mapping[str, tuple[int, float]]) -> dict:
    """The numbers of an ablation, from a table of `htgrpo eval summarize` whose baseline is the full method.

    settings  by label: cycles and structure ratio
    """
    ablation, rows = ABLATIONS[number], {row["label"]: row for row in table["rows"]}

    def spread(row: Mapping, part: str) -> dict:
        overall = row[part]["overall"]
        return {"mean": overall["score"], "interval": [overall["low"], overall["high"]]}

    found = []
    for label, (_, ratio) in settings.items():
        row = spread(rows[label], "scores") | {"label": label, "of_seeds": [], "structure_ratio": ratio}
        if label != FULL:
            beyond = rows[label]["differences"]["overall"]["beyond_noise"]
            row["difference"] = spread(rows[label], "differences") | {"beyond_noise": beyond}
        found.append(row | {"paper": ablation.paper.get(label)})
    return {
        "ablation": number,
        "title": ablation.title,
        "benchmark": table["title"],
        "seeds": len(rows[FULL]["sets"]),
        "cycles": settings[FULL][0],
        "base": spread(rows["base"], "scores"),
        "rows": found,
        "paper_between": ablation.between,
    }


def write_ablation(result: dict, out: Path, console: Console) -> None:
    """Write ablation-N.json, .md and .png into `out`, and print the table. result: of `of_runs` or `of_table`"""
    number = result["ablation"]
    stem = f"ablation-{number}"
    write_atomically(out / f"{stem}.json", json.dumps(result | {"note": NOTE}, indent=2) + "\n")
    grid = Grid(f"{result['title']}, {result['benchmark']} overall", _cells(result, number))
    text = f"# {grid.title}\n\n{markdown(grid)}\n\n{NOTE} {PAPER_NOTE}\n\n![]({stem}.png)\n"
    write_atomically(out / f"{stem}.md", text)
    _draw(result, number, out / f"{stem}.png")
    for table in terminal(grid, console.width):
        console.print(table)
    console.print(f"{NOTE} {PAPER_NOTE}", highlight=False)
    console.print(out / f"{stem}.md", highlight=False, soft_wrap=True)


def _row(label: str, folders: Sequence[Path], full: Sequence[Path], ablation: Ablation, benchmark: Benchmark) -> dict:
    summaries = [read_summary(folder) for folder in folders]
    prompts, resampling = read_prompts(folders[0]), benchmark.model_copy(update={"seed": summaries[0]["seed"]})
    values_SQI, full_SQI = (
        np.stack([read_scored(folder, "trained").correct_QI for folder in of_label]).astype(float)
        for of_label in (folders, full)
    )
    score = resampling.summarise(prompts, values_SQI)["overall"]
    row = {
        "label": label,
        "mean": score["score"],
        "interval": [score["low"], score["high"]],
        "of_seeds": [summary["trained"]["overall"] for summary in summaries],
        "structure_ratio": read_config(folders[0])["method"]["structure_ratio"],
        "paper": ablation.paper.get(label),
    }
    if label != FULL:
        difference = resampling.summarise(prompts, values_SQI - full_SQI)["overall"]
        low, high = difference["low"], difference["high"]
        beyond = bool(low > 0 or high < 0)
        row["difference"] = {"mean": difference["score"], "interval": [low, high], "beyond_noise": beyond}
    return row


def _name(label: str, number: int) -> str:
    return "full method" if label == FULL else label.partition("-")[2].replace("-", ABLATIONS[number].joined)


def _star(row: dict) -> str:
    return " *" if row.get("difference", {}).get("beyond_noise") else ""


def _cells(result: dict, number: int) -> list[list[str]]:
    """The table, headings first."""
    rows = [["variant", "overall", "of each seed", "difference", "beyond the noise", "the paper's"]]
    for row in result["rows"]:
        low, high = row["interval"]
        cells = ["–", "–"]
        if difference := row.get("difference"):
            ends = ", ".join(f"{end:+.3f}" for end in difference["interval"])
            cells = [f"{difference['mean']:+.3f} [{ends}]", "yes" if difference["beyond_noise"] else "no"]
        each = " ".join(f"{score:.3f}" for score in row["of_seeds"]) or "–"
        overall = f"{row['mean']:.3f} [{low:.3f}, {high:.3f}]"
        rows.append([_name(row["label"], number), overall, each, *cells, _papers(row, result)])
    return rows


def _papers(row: dict, result: dict) -> str:
    if row["paper"] is not None:
        return f"{row['paper']:.4g}"
    between = result["paper_between"]
    return f"{between[0]:.3g} to {between[1]:.3g}" if between else "not in its text"


# --- figure ----------------------------------------------------------------------------------------------------


def _draw(result: dict, number: int, path: Path) -> None:
    """Ours on the left, with intervals and seeds; what the paper's text says on the right."""
    rows = sorted(result["rows"], key=lambda row: row["structure_ratio"]) if number == 4 else result["rows"]
    with matplotlib.rc_context({**STYLE, "font.size": 10, "text.color": INK}):
        height = 3.4 if number == 4 else 1.5 + 0.42 * len(rows)
        figure = Figure(figsize=(10, height), layout="constrained", dpi=110)
        figure.suptitle(ABLATIONS[number].title, fontsize=11)
        ours, papers = figure.subplots(1, 2, width_ratios=[3, 2], sharey=number != 4)
        seeds = f"{result['seeds']} seed{'s' * (result['seeds'] > 1)}"
        ours.set_title(f"ours: {result['benchmark']} overall, {seeds}, 95 % intervals", fontsize=9.5)
        papers.set_title("the paper's: GenEval overall, MMaDA", fontsize=9.5, color=MUTED)
        (_draw_ratios if number == 4 else _draw_bars)(ours, papers, rows, result, number)
        figure.savefig(path)


def _draw_bars(ours: Axes, papers: Axes, rows: Sequence[dict], result: dict, number: int) -> None:
    """Bars that begin at the base model's score, so that their length is the gain."""
    places, base = np.arange(len(rows))[::-1], result["base"]["mean"]
    for place, row in zip(places, rows, strict=True):
        mean, (low, high), full = row["mean"], row["interval"], row["label"] == FULL
        ours.barh(place, mean - base, 0.6, left=base, color=OURS, alpha=0.85 if full else 0.5)
        ours.errorbar(mean, place, xerr=[[max(0, mean - low)], [max(0, high - mean)]], color=INK, capsize=3)
        ours.plot(row["of_seeds"], [place - 0.18] * len(row["of_seeds"]), "o", color=INK, ms=3, alpha=0.7)
        low, high = [row["paper"]] * 2 if row["paper"] is not None else result["paper_between"] or (PAPERS_BASE,) * 2
        papers.barh(place, low - PAPERS_BASE, 0.6, left=PAPERS_BASE, color=PAPERS, alpha=0.9 if full else 0.6)
        papers.barh(place, high - low, 0.6, left=low, color=PAPERS, alpha=0.3)
        papers.annotate(_papers(row, result), (high, place), (4, 0), textcoords="offset points", va="center")
    ours.set_yticks(places, [f"{_name(row['label'], number)}{_star(row)}" for row in rows])
    ours.set_xlabel(f"bars begin at the base model's score; {STAR}")
    papers.set_xlim(PAPERS_BASE, 0.95)
    for axes in (ours, papers):
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)


def _draw_ratios(ours: Axes, papers: Axes, rows: Sequence[dict], result: dict, number: int) -> None:
    ratios, means = [row["structure_ratio"] for row in rows], [row["mean"] for row in rows]
    lows, highs = zip(*(row["interval"] for row in rows), strict=True)
    errors = np.maximum(0, [np.subtract(means, lows), np.subtract(highs, means)])
    ours.errorbar(ratios, means, yerr=errors, color=OURS, marker="o", capsize=3)
    for row in rows:
        ours.plot([row["structure_ratio"]] * len(row["of_seeds"]), row["of_seeds"], ".", color=INK, ms=5, alpha=0.6)
        ours.annotate(_star(row), (row["structure_ratio"], row["interval"][1]), (0, 2),
                      textcoords="offset points", ha="center")  # fmt: skip
        if row["paper"] is not None:
            papers.plot(row["structure_ratio"], row["paper"], "o", color=MUTED)
            papers.annotate(f"{row['paper']:.3g}", (row["structure_ratio"], row["paper"]), (6, 4),
                            textcoords="offset points", color=MUTED)  # fmt: skip
    ours.axhline(result["base"]["mean"], color=MUTED, linestyle=":")
    ours.annotate("base", (0.99, result["base"]["mean"]), (0, 3), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", fontsize=8.5, color=MUTED)  # fmt: skip
    papers.set_ylim(0.78, 0.85)
    papers.set_xlabel("rho as in our files; the paper's text lost its values")
    ours.set_xlabel(f"rho; {STAR}")
    for axes in (ours, papers):
        axes.set_xlim(0, max(ratios) + 0.1)
