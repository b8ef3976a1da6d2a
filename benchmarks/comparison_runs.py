"""Pack the finished runs of a comparison into one small file, so that it can go on in another clone.

    comparison_runs.py pack runs/compare-tuned benchmarks/comparison/runs.tar.xz
    comparison_runs.py unpack benchmarks/comparison/runs.tar.xz runs/compare-tuned

Of each run: settings, log of every update and cycle, summary, and the evaluation with all verdicts. Weights,
checkpoints and pictures are left out. `make compare TUNE=1` takes such a run as finished.
"""

import argparse
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

COPIED = ("config.yaml", "metrics.jsonl", "summary.json", "eval/prompts.json")
PICTURES = "kept"  # of eval/*.npz, nearly all of its size


def finished(runs: Path) -> list[Path]:
    """Folders of finished runs, in the order of their names."""
    return sorted(summary.parent for summary in runs.rglob("summary.json"))


def without_pictures(evaluation: Path) -> bytes:
    """An eval/*.npz with no images. Deterministic, and not compressed: the archive is."""
    arrays, written = dict(np.load(evaluation)), io.BytesIO()
    arrays[PICTURES] = np.zeros((*arrays["correct"].shape, 0), dtype=arrays[PICTURES].dtype)
    np.savez(written, **arrays)
    return written.getvalue()


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What is packed of one run."""
    for name in COPIED:
        if (folder / name).exists():
            yield name, (folder / name).read_bytes()
    for evaluation in sorted(folder.glob("eval/*.npz")):
        yield f"eval/{evaluation.name}", without_pictures(evaluation)


def pack(runs: Path, archive: Path) -> int:
    """Write the archive, the same bytes for the same runs; returns how many runs it holds."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for folder in (found := finished(runs)):
            for name, content in files(folder):
                entry = tarfile.TarInfo(f"{folder.relative_to(runs)}/{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return len(found)


def unpack(archive: Path, runs: Path) -> int:
    """Lay the runs that are not there yet into the folder; returns how many those were."""
    with tarfile.open(archive) as tar:
        entries = tar.getmembers()
        there = {str(folder.relative_to(runs)) for folder in finished(runs)}
        new = [entry for entry in entries if not any(entry.name.startswith(f"{name}/") for name in there)]
        tar.extractall(runs, new, filter="data")
    return sum(entry.name.endswith("/summary.json") for entry in new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    count = (pack if given.do == "pack" else unpack)(given.source, given.target)
    print(f"{given.target}: {count} runs {given.do}ed")


if __name__ == "__main__":
    main()
