"""Sets of images made up: prompt files of the benchmarks' sizes, pictures of a few pixels, and a whole set of them."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from helpers.authors import checkout
from helpers.paths import ROOT
from htgrpo_ext.imagesets import suite_named
from htgrpo_ext.imagesets.base import IMAGES, Item
from htgrpo_ext.imagesets.record import Record, write_record
from htgrpo_ext.imagesets.scores import ScoreLine, read_about, read_scores
from htgrpo_ext.imagesets.sets import check_set, first_of_each_task, items_digest, write_items

GENEVAL_TASKS = {
    "single_object": 80,
    "two_object": 99,
    "counting": 80,
    "colors": 94,
    "position": 100,
    "color_attr": 100,
}
SIZE = (6, 6)


def real_file(name: str, inside: str) -> Path:
    """A benchmark's own prompts: beside the project, or MaskGRPO's copy. Skips the test if there is neither."""
    beside = ROOT.parent / "shared/data" / name
    return beside if beside.is_file() else checkout("UPSTREAM_CHECKOUT", inside) / inside


def geneval_lines() -> list[str]:
    """As many lines of each task as GenEval has, in its format."""
    lines = []
    for task, count in GENEVAL_TASKS.items():
        for i in range(count):
            include = [{"class": "cat", "count": 1}]
            lines.append(json.dumps({"tag": task, "include": include, "prompt": f"a photo of a {task} cat {i}"}))
    return lines


def dpg_lines() -> list[str]:
    return [json.dumps({"item_id": f"coco{i}", "prompt": f"two dog beside the bench {i}"}) for i in range(1065)]


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def picture(seed: object, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture of random pixels."""
    return Image.frombytes("RGB", size, random.Random(str(seed)).randbytes(3 * size[0] * size[1]))


def pictures(item: Item) -> list[Image.Image]:
    return [picture((item.key, i)) for i in range(4)]


def made_set(
    folder: Path,
    bench: str,
    prompts: Path | None = None,
    limit: int | None = None,
    stamped=True,
    paint: Callable[[Item], list[Image.Image]] = pictures,
    **changes,
) -> Record:
    """A complete set of random pictures, or painted ones, with the record that `changes` make."""
    suite = suite_named(bench)
    items = first_of_each_task(suite.items(prompts), limit)
    made = dict(bench=bench, prompts=items_digest(items), items=len(items), images_per_prompt=4, seed=0, size=SIZE)
    made |= dict(
        sampler={"steps": 3}, model={"name": "micro"}, weights="sha256:0", adapter=None, label="a", limit=limit
    )
    record = Record(**{**made, **changes})
    write_items(folder, items)
    write_record(folder, record)
    for item in items:
        suite.save(folder / IMAGES, item, paint(item), record.stamp if stamped else "")
    return record


def scored(folder: Path, scorer: str) -> tuple[list[Item], list[ScoreLine], dict]:
    """Items, lines of a scorer, and what is beside them in NAME.json."""
    _, items, record = check_set(folder)
    return items, read_scores(folder, scorer, items, record.images_per_prompt), read_about(folder, scorer) or {}
