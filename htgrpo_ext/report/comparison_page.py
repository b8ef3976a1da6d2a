"""compare.html and summary.html: tables, charts and the images of several runs side by side, in one file.

What it looks like is in comparison.html.jinja, page.css and comparison.css; what the gallery does in gallery.js.
"""

from collections.abc import Sequence
from typing import NamedTuple

from htgrpo_ext.report.gallery import Gallery
from htgrpo_ext.report.tables import Grid, half_width, short
from htgrpo_ext.report.templates import templates

WIDTH = 200.0  # units of a chart's axis


class Mark(NamedTuple):
    """A score on a chart, in its units; the paper's has no interval."""

    label: str
    kind: str  # base, ours or paper
    at: float
    low: float
    high: float
    words: str


class Chart(NamedTuple):
    """A column of a table: every row's score and interval on one axis."""

    title: str
    left: str  # what the axis begins with
    right: str
    marks: list[Mark]


class Part(NamedTuple):
    """A section of the page."""

    title: str
    note: str
    grids: Sequence[Grid]
    charts: Sequence[Chart] = ()
    figure: bytes | None = None  # a PNG


def comparison_page(
    title: str, facts: Sequence[tuple[str, str]], parts: Sequence[Part], words: str, galleries: Sequence[Gallery]
) -> str:
    """The page as HTML. facts: what the runs have in common, names and values."""
    template = templates().get_template("comparison.html.jinja")
    return template.render(title=title, facts=facts, parts=parts, words=words, galleries=galleries)


def charts(table: dict) -> list[Chart]:
    """A chart for each column of a table of summary.json."""
    return [_chart(table, name, title) for name, title in table["columns"].items()]


def _chart(table: dict, column: str, title: str) -> Chart:
    scores = [(row["label"], row["scores"][column]) for row in table["rows"]]
    printed = [(row["label"], row["scores"][column]) for row in table["paper"] if column in row["scores"]]
    low = min([score["low"] for _, score in scores] + [score for _, score in printed])
    high = max([score["high"] for _, score in scores] + [score for _, score in printed])
    scale = WIDTH / (high - low) if high > low else 0.0

    def place(score: float) -> float:
        return round((score - low) * scale, 1)

    marks = []
    for label, score in scores:
        kind = "base" if label == table["baseline"] else "ours"
        words = f"{short(score['score'])} {half_width(score['low'], score['high'])}"
        marks.append(Mark(label, kind, place(score["score"]), place(score["low"]), place(score["high"]), words))
    marks += [Mark(label, "paper", place(score), place(score), place(score), short(score)) for label, score in printed]
    return Chart(title, short(low), short(high), marks)
