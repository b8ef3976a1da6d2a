"""Scored sets side by side: summary.json, .md, .csv, .tex and .html, and the printed tables.

R rows, Q prompts, I images per prompt.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from htgrpo_ext.files import write_atomically
from htgrpo_ext.report.comparison_page import Part, charts, comparison_page
from htgrpo_ext.report.gallery import MOST_BYTES, Gallery, Measure, Prompt, Run, gallery
from htgrpo_ext.report.score_tables import as_csv, as_latex, as_markdown, extent, grids
from htgrpo_ext.report.scores import summarise
from htgrpo_ext.report.sets import ScoredSet
from htgrpo_ext.report.tables import terminal

VERDICT = "correct"  # the metric that is a verdict


def write_set_comparison(
    benches: Mapping[str, Sequence[ScoredSet]], baseline: str | None, out: Path, console: Console
) -> dict:
    """Write all files and print the tables; returns what summary.json holds.

    benches   the sets of each benchmark
    baseline  label of the row that differences are from; None: the first set's

    Raises UserError, before anything is written, if a benchmark has no row of that label.
    """
    summary = summarise(benches, baseline)
    page = _page(summary, benches)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "summary.md": as_markdown(summary),
        "summary.csv": as_csv(summary),
        "summary.tex": as_latex(summary),
        "summary.html": page,
        "summary.json": json.dumps(summary, indent=2) + "\n",
    }.items():
        write_atomically(out / name, text)
    for table in summary["tables"]:
        for grid in grids(table):
            for part in terminal(grid, console.width):
                console.print(part)
    console.print(summary["words"], highlight=False)
    console.print(out / "summary.html", highlight=False, soft_wrap=True)
    return summary


def _page(summary: dict, benches: Mapping[str, Sequence[ScoredSet]]) -> str:
    parts = [Part(table["title"], extent(table), list(grids(table)), charts(table)) for table in summary["tables"]]
    galleries = [_gallery(sets, MOST_BYTES // len(benches)) for sets in benches.values()]
    titles = " · ".join(sets[0].suite.title for sets in benches.values())
    facts = [fact for sets in benches.values() for fact in _facts(sets, len(benches) > 1)]
    return comparison_page(titles, facts, parts, summary["words"], galleries)


def _facts(sets: Sequence[ScoredSet], named: bool) -> list[tuple[str, str]]:
    """What the sets of a benchmark have in common."""
    record, title = sets[0].record, sets[0].suite.title
    sampler = ", ".join(f"{key} {value}" for key, value in record.sampler.items())
    models = ", ".join(dict.fromkeys(one.model for one in sets))
    facts = [("models", models), ("sampling", sampler), ("noise seed", str(record.seed))]
    facts += [("image", " x ".join(map(str, record.size)))]
    return [(f"{title}: {name}" if named else name, value) for name, value in facts]


def _gallery(sets: Sequence[ScoredSet], most_bytes: int) -> Gallery:
    """The images of the first run of each row, by the verdict if there is one."""
    first = list({one.label: one for one in reversed(sets)}.values())[::-1]
    measures = _measures(first)
    verdict = measures[0].title if _has_verdict(first[0]) else None
    runs = [_run(one, number, measures[0], verdict is not None) for number, one in enumerate(first)]
    prompts = [Prompt(item.prompt, item.tag.replace("_", " ")) for item in first[0].items]
    several = len(first) < len(sets)
    title = f"Images, {first[0].suite.title}" + (", the first run of each row" if several else "")
    return gallery(title, prompts, runs, measures, most_bytes)


def _has_verdict(one: ScoredSet) -> bool:
    return any(VERDICT in scored.scorer.metrics for scored in one.scores.values())


def _measures(sets: Sequence[ScoredSet]) -> list[Measure]:
    """All metrics of all scorers: a verdict first, then the benchmark's own scorer."""
    keys = [(name, metric) for name, scored in sets[0].scores.items() for metric in scored.scorer.metrics]
    keys.sort(key=lambda key: (key[1] != VERDICT, sets[0].scores[key[0]].scorer.suites is None))
    return [Measure(_title(sets[0], *key), np.array([_values(one, *key) for one in sets])) for key in keys]


def _title(one: ScoredSet, name: str, metric: str) -> str:
    title, alone = one.scores[name].scorer.title, len(one.scores[name].scorer.metrics) == 1
    return f"{title} verdict" if metric == VERDICT else title if alone else f"{title} {metric}"


def _values(one: ScoredSet, name: str, metric: str) -> list[list[float]]:
    """Q lists of I; NaN where an image has no score."""
    lines, images = one.scores[name].lines, one.record.images_per_prompt
    values = [line.values.get(metric, math.nan) for line in lines]
    return [values[start : start + images] for start in range(0, len(values), images)]


def _run(one: ScoredSet, number: int, first: Measure, verdicts: bool) -> Run:
    value_QI = first.value_RQI[number]
    reasons = _reasons(one)
    if verdicts:
        words = np.where(value_QI > 0, "", reasons)
    else:
        words = np.array([[f"{_number(value)} {reason}".strip() for value, reason in zip(*row, strict=True)]
                          for row in zip(value_QI, reasons, strict=True)])  # fmt: skip
    return Run(one.label, one.load, value_QI > 0 if verdicts else None, words)


def _number(value: float) -> str:
    return "no score" if math.isnan(value) else f"{value:.2f}"


def _reasons(one: ScoredSet) -> np.ndarray:
    """Why images fail, by the scorer that says so. [Q, I]"""
    told = next((s.lines for s in one.scores.values() if any(line.reason for line in s.lines)), None)
    images, prompts = one.record.images_per_prompt, len(one.items)
    words = [line.reason for line in told] if told else [""] * (images * prompts)
    return np.array(words).reshape(prompts, images)
