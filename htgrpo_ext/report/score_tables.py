"""The content of summary.json as tables: of the terminal and the page, and as summary.md, .tex and .csv."""

import csv
import io
from collections.abc import Callable, Iterator

from htgrpo_ext.report.tables import Grid, half_width, interval, latex, markdown, short

CSV = (
    *("bench", "table", "row", "source", "runs", "column", "score", "low", "high", "baseline", "difference"),
    *("difference_low", "difference_high", "beyond_noise", "prompts_needed", "images_needed"),
)


def grids(table: dict) -> Iterator[Grid]:
    """The scores of a table with the paper's below ours, the differences, and the images that these need."""
    heads, rows, title = table["columns"], table["rows"], table["title"]
    first = ["", *heads.values()]

    def lines(of: list[dict], part: str, words: Callable[[dict, str], str]) -> list[list[str]]:
        return [first, *([_name(row), *(words(row[part][column], column) for column in heads)] for row in of)]

    theirs = [[row["label"], *(_printed(row["scores"].get(column)) for column in heads)] for row in table["paper"]]
    yield Grid(title, [*lines(rows, "scores", _score), *theirs], ruled=len(rows) + 1)
    if others := [row for row in rows if row["differences"]]:
        yield Grid(f"less {table['baseline']}", lines(others, "differences", _difference), title)
        yield Grid("images needed to see such a difference", lines(others, "differences", _needed), title)


def _name(row: dict) -> str:
    return row["label"] if len(row["sets"]) == 1 else f"{row['label']} ({len(row['sets'])} runs)"


def _score(score: dict, column: str) -> str:
    if column == "overall":
        return f"{short(score['score'])} {interval(score['low'], score['high'])}"
    return f"{short(score['score'])} {half_width(score['low'], score['high'])}"


def _difference(score: dict, column: str) -> str:
    star = "*" if score["beyond_noise"] else ""
    return f"{short(score['score'], '+')}{star} {half_width(score['low'], score['high'])}"


def _needed(score: dict, column: str) -> str:
    return "–" if score["images_needed"] is None else f"{score['images_needed']:,}"


def _printed(score: float | None) -> str:
    return "–" if score is None else short(score)


def as_markdown(summary: dict) -> str:
    """The content of summary.md."""
    parts = []
    for table in summary["tables"]:
        parts += [f"# {table['title']}", extent(table)]
        for number, grid in enumerate(grids(table)):
            parts += [f"## {grid.title}"] * (number > 0) + [markdown(grid)]
    return "\n\n".join([*parts, summary["words"]]) + "\n"


def extent(table: dict) -> str:
    """How much a table rests on, and what to know of its paper's rows."""
    part = f" Not the whole benchmark: {table['limit']} prompts of each task." if table["limit"] else ""
    extent = f"{table['prompts']:,} prompts, {table['prompts'] * table['images_per_prompt']:,} images a run.{part}"
    return f"{extent} {table['note']}".strip()


def as_latex(summary: dict) -> str:
    """The content of summary.tex: a table environment for each grid; needs the package booktabs."""
    parts = [latex(grid) for table in summary["tables"] for grid in grids(table)]
    return "\n".join(
        ["% needs \\usepackage{booktabs}", *(f"% {line}" for line in summary["words"].split("\n")), *parts]
    )


def as_csv(summary: dict) -> str:
    """The content of summary.csv: a line for each number, ours and the paper's."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV, lineterminator="\n")
    writer.writeheader()
    for table in summary["tables"]:
        of_table = {"bench": table["bench"], "table": table["name"]}
        for row in table["rows"]:
            for column, score in row["scores"].items():
                line = (
                    of_table
                    | {"row": row["label"], "source": "ours", "runs": len(row["sets"]), "column": column}
                    | score
                )
                if difference := row["differences"].get(column):
                    ends = {f"difference_{end}": difference[end] for end in ("low", "high")}
                    rest = {key: difference[key] for key in ("beyond_noise", "prompts_needed", "images_needed")}
                    line |= {"baseline": table["baseline"], "difference": difference["score"], **ends, **rest}
                writer.writerow(line)
        for row in table["paper"]:
            name = f"{row['model']} {row['method']}"
            lines = (
                {"row": name, "source": "paper", "column": c, "score": score} for c, score in row["scores"].items()
            )
            writer.writerows(of_table | line for line in lines)
    return file.getvalue()
