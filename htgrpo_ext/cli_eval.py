"""`htgrpo eval`: images in a benchmark's layout, their scores, and tables of them."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Benchmarks: generate images, score them, sum up.")


@app.command()
def summarize(
    sets: Annotated[list[Path], typer.Argument(metavar="SET...", help="Scored sets, or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="Folder of summary.json, .csv, .tex, .md and .html.")],
    baseline: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Row that differences are from; without it the first set's.")
    ] = None,
) -> None:
    """Tables of scored sets: intervals, differences, the paper's rows; and a page with their images side by side."""
    from htgrpo_ext.workflow.summarize import summarize as summarize_sets

    summarize_sets(sets, baseline, out)
