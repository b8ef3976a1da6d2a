"""Scored sets of images, made up: as `htgrpo eval generate` and `htgrpo eval score` leave them, small and quick."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import torch
from PIL import Image

from htgrpo_ext.imagesets import suite_named
from htgrpo_ext.imagesets.base import IMAGES, Item
from htgrpo_ext.imagesets.record import Record, write_record
from htgrpo_ext.imagesets.scores import ScoreLine, images_digest, write_scores
from htgrpo_ext.imagesets.sets import items_digest, write_items
from htgrpo_ext.micro.decoder import decode_codes
from htgrpo_ext.micro.verifier import verify
from htgrpo_ext.micro.world import draw_scene, split_prompts
from htgrpo_ext.pixels import to_image

SAMPLER = {"sampler": "emerge", "steps": 12, "guidance": 3.5, "temperature": 1.0}


def micro_items(per_task: int, tasks: int = 6) -> list[Item]:
    """Prompts of the micro world, some of each of its first tasks."""
    prompts = [p for task in range(tasks) for p in split_prompts()[1][40 * task : 40 * task + per_task]]
    return [Item(f"{n:05d}", p["prompt"], dict(p), json.dumps(p)) for n, p in enumerate(prompts)]


def write_set(
    folder: Path,
    items: Sequence[Item],
    wrong: float,
    weights: str,
    bench: str = "geneval",
    draws: str = "",
    paint: Callable[[], Image.Image] | None = None,
    **record,
) -> tuple[Path, list]:
    """A complete set of pictures of the micro world, and the verdict on each of them.

    wrong    how far from their prompts the pictures are, 0 to 1
    weights  digest of the model that painted them
    draws    the pictures of two sets of equal `draws` and `wrong` are the same
    paint    paints other pictures, on which there is no verdict
    record   fields of its record that are not the usual ones
    """
    suite, rng = suite_named(bench), Random(draws)
    usual = dict(images_per_prompt=4, seed=0, size=(128, 128), sampler=SAMPLER, model={"name": "mmada"}, adapter=None)
    made = Record(
        **{"bench": bench, "prompts": items_digest(items), "items": len(items), "weights": weights}
        | {"label": folder.name, **usual, **record}
    )
    verdicts = []
    for item in items:
        if paint:
            images = [paint() for _ in range(4)]
        else:
            scenes = [draw_scene(item.metadata, rng, wrong) for _ in range(4)]
            verdicts += [verify(item.metadata, codes) for codes in scenes]
            images = [to_image(pixels) for pixels in decode_codes(torch.tensor(scenes))]
        suite.save(folder / IMAGES, item, images, made.stamp)
    write_items(folder, items)
    write_record(folder, made)
    return folder, verdicts


def write_verdicts(folder: Path, items: Sequence[Item], verdicts: Sequence, scorer: str = "geneval") -> None:
    """Scores of a scorer whose lines have `correct` alone."""
    write_lines(folder, items, scorer, lambda n: ({"correct": float(verdicts[n].correct)}, verdicts[n].reason))


def write_lines(
    folder: Path, items: Sequence[Item], scorer: str, score: Callable[[int], tuple], bench: str = "geneval", **more
) -> None:
    """SET/scores/NAME.jsonl and .json.

    score  of the image at a place: its values, the reason, and answers if there are any
    more   what else NAME.json says
    """
    places = [(item.key, image) for item in items for image in range(4)]
    lines = [ScoreLine(*place, *score(number)) for number, place in enumerate(places)]
    about = {"format": 1, "scorer": scorer, "options": {}, "images": images_digest(folder, suite_named(bench), items)}
    write_scores(folder, scorer, lines, about | more)
