"""Checkouts in which a stand-in takes the place of a benchmark's own script: the same arguments, the same files."""

import csv
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = {"geneval": "evaluation/evaluate_images.py", "dpg": "dpg_bench/compute_dpg_bench.py"}
KINDS = "entity - whole, entity - part, attribute - color, attribute - shape, relation - spatial, global, other - count"
CATEGORIES = KINDS.split(", ")


def standin(folder: Path, name: str, script: Path | None = None) -> dict[str, str]:
    """Make a checkout with a stand-in for `geneval` or `dpg`, or another script; returns the scorer's options."""
    path = folder / SCRIPTS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(script or HERE / path.name, path)
    return {"checkout": str(folder), "python": sys.executable, "commit": "any"}


def write_questions(path: Path, items: Sequence[str], seed: int = 0) -> Path:
    """Questions in DPG-Bench's format, with all its broad categories; the first item's refer to its first question."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
        writer.writerow([*columns.split(","), "question_natural_language"])
        for place, item in enumerate(items):
            for number in range(1, 3 + draw.randrange(8)):
                parents = sorted({draw.randrange(number) for _ in range(draw.randrange(1, 3))})
                if place == 0 and number == 2:
                    parents = [1]
                category = CATEGORIES[draw.randrange(len(CATEGORIES))]
                text = f"Is there, in {item}, thing {number}?"
                depends = ",".join(map(str, [p for p in parents if p] or [0]))
                writer.writerow(
                    [item, "", "", number, depends, *category.split(" - ")[:1], "", f"{category} (x, y)", text]
                )
    return path
