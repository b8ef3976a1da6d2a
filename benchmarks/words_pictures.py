"""Pictures of the base and of trained models of the words world, one below the other: the same prompts, the same noise.

words_pictures.py RUN [RUN ...] --out FILE.png     folders of finished runs, one base for all
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")
from matplotlib import pyplot

COLUMNS, ROWS, GAP = 6, 3, 2  # pictures across and down, pixels between them


def sheet(pictures: np.ndarray) -> np.ndarray:
    """[ROWS * COLUMNS, 3, H, W] uint8 as one picture [H', W', 3]."""
    framed = np.pad(pictures.transpose(0, 2, 3, 1), ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0)), constant_values=128)
    rows = framed.reshape(ROWS, COLUMNS, *framed.shape[1:])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def evaluated(run: Path, model: str) -> np.ndarray:
    """The first picture of prompts spread over the whole evaluation, of `base` or `trained`."""
    kept = np.load(run / "eval" / f"{model}.npz")["kept"][:, 0]
    return sheet(kept[np.linspace(0, len(kept) - 1, ROWS * COLUMNS).astype(int)])


def title_of(run: Path) -> str:
    summary = json.loads((run / "summary.json").read_text())
    return f"{run.name}: exact {summary['trained']['overall']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of the words world, before and after")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    given = parser.parse_args()
    base = json.loads((given.runs[0] / "summary.json").read_text())["base"]["overall"]
    sheets = {f"base: exact {base:.2f}": evaluated(given.runs[0], "base")}
    sheets |= {title_of(run): evaluated(run, "trained") for run in given.runs}
    across = min(2, len(sheets))
    down = -(-len(sheets) // across)
    figure, axes = pyplot.subplots(down, across, figsize=(5.2 * across, 1.4 * down), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, picture) in zip(axes.flat, sheets.items(), strict=False):
        axis.imshow(picture)
        axis.set_title(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(given.out, dpi=110)


if __name__ == "__main__":
    main()
