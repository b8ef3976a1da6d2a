"""Stands in for `htgrpo` in a reproduction: it leaves the files of each stage, without a model.

STAND_IN  {"kill": stage, "fail": stage, "nothing": command}: when the stage is half done, kill -9 the process that
          started this one, or end with exit code 3; or do nothing for such a command, and end with exit code 0
"""

import argparse
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

from PIL import Image

from htgrpo_ext.config import load_settings, save_settings
from htgrpo_ext.files import write_atomically
from htgrpo_ext.imagesets import suite_named
from htgrpo_ext.imagesets.base import IMAGES
from htgrpo_ext.imagesets.digests import checkpoint_digest
from htgrpo_ext.imagesets.pngs import sweep
from htgrpo_ext.imagesets.record import Record, read_record, write_record
from htgrpo_ext.imagesets.scores import ScoreLine, images_digest, write_scores
from htgrpo_ext.imagesets.sets import check_set, first_of_each_task, items_digest, missing_items, write_items
from htgrpo_ext.report.folder import SUMMARY

ASKED = json.loads(os.environ.get("STAND_IN", "{}"))


def half_done(stage: str) -> None:
    print(f"half of {stage}", flush=True)
    if ASKED.get("fail") == stage:
        sys.exit(3)
    if ASKED.get("kill") == stage:
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()  # until the system kills this process after its parent


def train(given: argparse.Namespace) -> None:
    settings = load_settings(given.files, given.set)
    folder = settings.folder
    assert given.resume == (folder / "config.yaml").exists(), "a run is resumed if it was begun"
    save_settings(settings, folder / "config.yaml")
    half_done(f"train {folder.name}")
    write_atomically(folder / "model" / "config.json", "{}")
    write_atomically(folder / "model" / "model.safetensors", f"{settings.run_name} {settings.loop.cycles}")
    summary = dict.fromkeys(SUMMARY) | {"reward": [0.25, 0.5], "cycles": settings.loop.cycles}
    write_atomically(folder / "summary.json", json.dumps(summary))


def generate(given: argparse.Namespace) -> None:
    settings, suite = load_settings(given.files, given.set), suite_named(given.bench)
    items = first_of_each_task(suite.items(None), given.limit)
    weights = checkpoint_digest([settings.model.checkpoint])
    sampler, model = settings.sampling.model_dump(exclude={"seed"}), settings.model.model_dump(mode="json")
    made = (settings.sampling.seed, (16, 16), sampler, model, weights, None, given.label)
    record = Record(suite.name, items_digest(items), len(items), suite.images_per_prompt, *made, limit=given.limit)
    sweep(given.out)
    if not (given.out / "record.json").exists():
        write_items(given.out, items)
        write_record(given.out, record)
    missing = missing_items(given.out, suite, items, read_record(given.out))
    for number, item in enumerate(missing):
        if number == len(items) // 2:
            half_done(f"generate {given.out.name}")
        shade = hashlib.sha256(f"{weights} {item.key}".encode()).digest()
        pictures = [Image.new("RGB", (16, 16), (*shade[:2], i)) for i in range(suite.images_per_prompt)]
        suite.save(given.out / IMAGES, item, pictures, record.stamp)


def score(given: argparse.Namespace) -> None:
    [folder] = given.files
    suite, items, record = check_set(folder)
    half_done(f"score {folder.name}")
    pictures = [(item, i, image) for item in items for i, image in enumerate(suite.load(folder / IMAGES, item))]
    lines = [ScoreLine(item.key, i, {"correct": float(image.getpixel((0, 0))[0] > 127)}) for item, i, image in pictures]
    write_scores(folder, given.scorer, lines, {"images": images_digest(folder, suite, items)})


def summarize(given: argparse.Namespace) -> None:
    half_done("summarize")
    scores = {str(s): (s / "scores" / "micro.jsonl").read_text().count('"correct": 1.0') for s in given.files}
    write_atomically(given.out / "table.json", json.dumps([*scores.values()]))


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "eval"]
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path)
    for name in ("loop", "bench", "label", "scorer", "baseline", "adapter"):
        parser.add_argument(f"--{name}")
    given = parser.parse_args(words[1:])
    if ASKED.get("nothing") != words[0]:
        {"train": train, "generate": generate, "score": score, "summarize": summarize}[words[0]](given)


if __name__ == "__main__":
    main()
