"""`htgrpo ablate`: one of the paper's ablations, every variant and the full method with every seed.

The runs stand in one folder for all ablations, so the full method is trained once. Finished runs are kept, unfinished
ones resumed.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from htgrpo_ext.config import ablation_files
from htgrpo_ext.files import require_folder
from htgrpo_ext.report.ablation import FULL, of_runs, write_ablation
from htgrpo_ext.report.summary import method_label
from htgrpo_ext.workflow.compare import plan, require_all, run_all
from htgrpo_ext.workflow.processes import stop_on_sigterm


def ablate(number: int, files: Sequence[Path], seeds: int, jobs: int, overrides: Sequence[str], out: Path) -> None:
    """Train ablation `number`'s variants and the full method, each with seeds 0 .. `seeds` - 1, and write the report.

    out  folder of the runs, and of ablation-N.json, .md and .png

    A variant with a run that failed is left out of the report, and named; then UserError is raised.
    """
    console = Console()
    stop_on_sigterm()
    require_folder(out)
    runs = plan(files, ablation_files(number), seeds, overrides, out)
    failed = run_all(runs, jobs, console)
    whole: dict[str, list[Path]] = {}
    for first in range(0, len(runs), seeds):
        of_variant = runs[first : first + seeds]
        if not any(run in failed for run in of_variant):
            whole[method_label(of_variant[0].settings)] = [run.folder for run in of_variant]
    if FULL in whole:
        write_ablation(of_runs(number, whole), out, console)
    require_all(runs, failed)
