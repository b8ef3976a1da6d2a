"""A table of words, as the terminal, Markdown and LaTeX show it."""

import re
from typing import NamedTuple

from rich import box
from rich.table import Table


class Grid(NamedTuple):
    """The first row is the head; the first column names the rows."""

    title: str
    rows: list[list[str]]
    of: str = ""  # what it is a part of
    ruled: int | None = None  # number of the row that a line is drawn above

    @property
    def caption(self) -> str:
        """A title that says by itself what the table is."""
        return f"{self.of}: {self.title}" if self.of else self.title


def short(score: float, sign: str = "") -> str:
    """0.81 as .81"""
    return f"{score:{sign}.2f}".replace("0.", ".", 1) if abs(round(score, 2)) < 1 else f"{score:{sign}.2f}"


def interval(low: float, high: float, sign: str = "") -> str:
    """[.78, .84]"""
    return f"[{short(low, sign)}, {short(high, sign)}]"


def half_width(low: float, high: float) -> str:
    """±.03"""
    return f"±{short((high - low) / 2)}"


def markdown(grid: Grid) -> str:
    """The rows, without the title."""
    head, *rest = grid.rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    rows = [[cell.replace("|", r"\|") for cell in row] for row in (head, rule, *rest)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def terminal(grid: Grid, width: int) -> list[Table]:
    """The rows as one table, or as several that fit the terminal; each begins with the first column."""
    widths = [max(map(len, column)) + 3 for column in zip(*grid.rows, strict=True)]
    parts: list[list[int]] = [[]]
    for i in range(1, len(widths)):
        if parts[-1] and widths[0] + sum(widths[j] for j in parts[-1]) + widths[i] > width:
            parts.append([])
        parts[-1].append(i)
    tables = []
    for part in parts:
        table = Table(title=grid.caption, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for i in (0, *part):
            table.add_column(grid.rows[0][i], justify="right" if i else "left", no_wrap=True)
        for row in grid.rows[1:]:
            table.add_row(*(row[i].replace("[", r"\[") for i in (0, *part)))
        tables.append(table)
    return tables


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "*": r"$^{*}$",
}


def latex(grid: Grid) -> str:
    """A table environment; needs the package booktabs."""
    head, *rest = ([_latex_cell(cell) for cell in row] for row in grid.rows)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex_cell(grid.caption)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", f"{' & '.join(head)} \\\\", r"\midrule"]
    for number, (name, *cells) in enumerate(rest, 1):
        if number == grid.ruled:
            lines.append(r"\midrule")
        lines.append(f"{' & '.join([f'{{{name}}}', *cells])} \\\\")  # in braces, a name may begin with a bracket
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _latex_cell(text: str) -> str:
    escaped = "".join(LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w.])([+-])(?=[.\d])", r"$\1$", escaped)  # a sign, not a hyphen
