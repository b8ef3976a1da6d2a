"""`htgrpo eval summarize`: scored sets of images in one table for each benchmark and scorer, and on one page."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from htgrpo_ext.files import require_folder
from htgrpo_ext.report.set_comparison import write_set_comparison
from htgrpo_ext.report.sets import read_sets


def summarize(folders: Sequence[Path], baseline: str | None, out: Path, model: str | None = None) -> None:
    """Compare sets, or all the sets below some folders. Writes summary.json, .csv, .tex, .md and .html; prints tables.

    baseline  label of the row that differences are from; None: the first set's
    model     refuse sets of any other

    Raises UserError, and writes nothing, for sets that cannot be compared.
    """
    require_folder(out)
    write_set_comparison(read_sets(folders, model), baseline, out, Console())
