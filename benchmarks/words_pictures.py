"""Pictures of the base and of trained models of the words world, side by side: the same prompts, the same noise.

words_pictures.py RUN [RUN ...] --out FILE.png     folders of finished runs, one base for all
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from htgrpo_ext.report.figures import contact_sheet

COLUMNS, ROWS = 6, 3  # pictures of a model


def painted(run: Path, model: str) -> tuple[Image.Image, str]:
    """The first pictures of prompts spread over the evaluation, by `base` or `trained`, and their caption."""
    kept = np.load(run / "eval" / f"{model}.npz")["kept"][:, 0]  # uint8 [prompts, 3, H, W]
    places = np.linspace(0, len(kept) - 1, ROWS * COLUMNS).astype(int)
    images = [Image.fromarray(kept[place].transpose(1, 2, 0)) for place in places]
    score = json.loads((run / "summary.json").read_text())[model]["overall"]
    return contact_sheet(images, COLUMNS), f"{'base' if model == 'base' else run.name}: exact {score:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of the words world, before and after")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    given = parser.parse_args()
    models = [(given.runs[0], "base"), *((run, "trained") for run in given.runs)]
    sheets, captions = zip(*(painted(*model) for model in models), strict=True)
    contact_sheet(list(sheets), 2, list(captions)).convert("L").save(given.out, optimize=True)


if __name__ == "__main__":
    main()
