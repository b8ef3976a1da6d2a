"""A set as a whole: its items in SET/prompts.jsonl, what is missing of its images, and what does not belong there."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from htgrpo_ext.errors import UserError
from htgrpo_ext.files import write_atomically
from htgrpo_ext.imagesets import suite_named
from htgrpo_ext.imagesets.base import IMAGES, Item, Suite
from htgrpo_ext.imagesets.pngs import stamp_of
from htgrpo_ext.imagesets.record import Record, read_record

PROMPTS = "prompts.jsonl"


def items_text(items: Sequence[Item]) -> str:
    """The contents of prompts.jsonl: a line per item with its key, prompt, and the benchmark's own line."""
    return "".join(json.dumps({"key": item.key, "prompt": item.prompt, "line": item.line}) + "\n" for item in items)


def items_digest(items: Sequence[Item]) -> str:
    """sha256 of prompts.jsonl."""
    return f"sha256:{hashlib.sha256(items_text(items).encode()).hexdigest()}"


def write_items(folder: Path, items: Sequence[Item]) -> None:
    """folder: SET"""
    write_atomically(folder / PROMPTS, items_text(items))


def read_items(folder: Path, record: Record) -> list[Item]:
    """The items of a set. Raises UserError if they are not those of its record."""
    path, items = folder / PROMPTS, []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            each = json.loads(line)
            items.append(Item(each["key"], each["prompt"], json.loads(each["line"]), each["line"]))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; generate the set again") from None
    except (ValueError, KeyError, TypeError):
        items = []
    if len(items) != record.items or items_digest(items) != record.prompts:
        raise UserError(f"{path}: not the prompts of the set's record; generate the set again")
    return items


def first_of_each_task(items: Sequence[Item], limit: int | None) -> list[Item]:
    """The first `limit` items of every task; all of them if it is None."""
    seen: Counter[str] = Counter()
    chosen = []
    for item in items:
        seen[item.tag] += 1
        if limit is None or seen[item.tag] <= limit:
            chosen.append(item)
    return chosen


def missing_items(folder: Path, suite: Suite, items: Sequence[Item], record: Record) -> list[Item]:
    """The items of which SET/images has nothing.

    Raises UserError for a file that does not belong there, for an item that is there in part, damaged or of another
    size, and for an image that another record's model painted.
    """
    root = folder / IMAGES
    belong = set(suite.files(root, items))
    belong |= {parent for path in belong for parent in path.parents}
    for path in sorted(root.rglob("*")):
        if path not in belong:
            raise UserError(f"{path}: does not belong to the set; move it away")
    missing, stamps = [], {}
    for item in items:
        if not suite.top(root, item).exists():
            missing.append(item)
            continue
        if problem := suite.problem(root, item, record.size):
            raise UserError(f"{problem}; remove {suite.top(root, item)} and run htgrpo eval generate again")
        stamps |= {path: stamp_of(path) for path in suite.item_files(root, item) if path.suffix == ".png"}
    for path, stamp in stamps.items():
        # Images without any stamp are another program's: a set may consist of them, but not in part.
        if stamp != f"{record.stamp} {path.relative_to(root)}" and any(stamps.values()):
            raise UserError(f"{path}: another set's image, or another prompt's; remove it (the sets are mixed)")
    return missing


def check_set(folder: Path) -> tuple[Suite, list[Item], Record]:
    """The suite, items and record of a set in SET. Raises UserError unless all its images are there, and no others."""
    record = read_record(folder)
    suite, items = suite_named(record.bench), read_items(folder, record)
    if record.images_per_prompt != suite.images_per_prompt:
        raise UserError(
            f"{folder}: {record.images_per_prompt} images a prompt, but {suite.title} has "
            f"{suite.images_per_prompt}; generate the set again"
        )
    if missing := missing_items(folder, suite, items, record):
        path = suite.item_files(folder / IMAGES, missing[0])[-1]
        raise UserError(
            f"{path}: missing, as are the images of {len(missing):,} of {len(items):,} prompts; "
            "go on with htgrpo eval generate"
        )
    return suite, items, record


def describe_set(folder: Path) -> str:
    """A complete set in a few words. Raises UserError unless it is complete."""
    suite, items, record = check_set(folder)
    part = f" (not the whole: {record.limit} prompts of each task)" if record.limit else ""
    return f"{suite.title}: {suite.described(len(items), record.size)}{part}"
