"""Calibration pictures: what must come out is known, and a scorer is believed only if it does.

A folder of the user's has the pictures and calibration.jsonl, a line each:

    {"file": "cat.png", "prompt": "a photo of a cat", "expect": {"correct": 1}}
    {"file": "cat.png", "prompt": "a photo of a cat", "expect": {"clip": [0.2, 0.4]}, "metadata": {..}}

`expect` has of a metric the one right value, or the lowest and the highest. `metadata` is what the scorer reads of a
prompt: for GenEval a line of its prompt file, for DPG-Bench {"question": "Is there a cat?"}.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.imagesets.base import Item, Suite
from htgrpo_ext.imagesets.scorers.base import Known, Pictures, Scorer

SIDE = 512  # pixels of a calibration picture, which is padded to a square
GREY = (128, 128, 128)


def read_known(folder: Path) -> list[Known]:
    """The pictures of a user's folder. Raises UserError, which names the line."""
    path = folder / "calibration.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}; --calibration)") from None
    found = [_known(folder, line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"{path}: no calibration picture in it")
    return found


def _known(folder: Path, line: str, where: str) -> Known:
    try:
        given = json.loads(line)
        item = Item(given["file"], given["prompt"], given.get("metadata", {}))
        ranges = {m: [v, v] if isinstance(v, int | float) else v for m, v in given["expect"].items()}
        expect = {metric: (float(low), float(high)) for metric, (low, high) in ranges.items()}
        if not expect:
            raise ValueError("`expect` is empty")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f'{where}: not {{"file", "prompt", "expect": {{metric: value}}}} ({one_line(error)})') from None
    try:
        with Image.open(folder / item.key) as image:
            return Known(item, image.convert("RGB"), expect)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: no picture {one_line(item.key)} ({one_line(error)})") from None


def calibrate(scorer: Scorer, suite: Suite, known: Sequence[Known], folder: Path) -> list[dict]:
    """Have a scorer judge pictures whose verdict is known, in the layout of a suite.

    folder   of all its files: images/, own/
    Returns  of each picture its name, what was expected, what came out
    Raises   UserError if a verdict is wrong
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "own").mkdir(parents=True)
    images = suite.images_per_prompt
    items = [
        each.item._replace(key=f"{number:05d}", line=json.dumps(each.item.metadata))
        for number, each in enumerate(known)
    ]
    for item, each in zip(items, known, strict=True):
        picture = ImageOps.pad(each.image.convert("RGB"), (SIDE, SIDE), color=GREY)
        suite.save(folder / "images", item, [picture] * images)
    pictures = Pictures(suite, folder / "images", items, images, (SIDE, SIDE))
    lines = list(scorer.score(pictures, folder / "own"))
    if len(lines) != len(known) * images:
        raise UserError(f"scorer {scorer.name}: {len(lines)} lines for {len(known)} calibration pictures ({folder})")
    results, wrong = [], []
    for place, each in enumerate(known):
        for line in lines[place * images : (place + 1) * images]:
            faults = list(_faults(each, line.values))
            wrong += [fault for fault in faults if fault not in wrong]
            if line.image == 0 or faults:
                results.append({"picture": each.item.key, "prompt": each.item.prompt, "values": dict(line.values)})
    if wrong:
        raise UserError(
            f"scorer {scorer.name} does not work here, its calibration pictures come out wrong: "
            f"{'; '.join(wrong[:3])} ({folder})"
        )
    return results


def _faults(known: Known, values) -> Iterable[str]:
    for metric, (low, high) in known.expect.items():
        value = values.get(metric)
        if value is None or not low <= value <= high:
            right = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            got = "missing" if value is None else f"{value:g}"
            yield f"{one_line(known.item.key, 40)}, `{one_line(known.item.prompt, 60)}`: {metric} is {got}, not {right}"


def blanks() -> list[tuple[str, Image.Image]]:
    """Pictures with nothing on them: grey, black, white."""
    return [(name, Image.new("RGB", (SIDE, SIDE), name)) for name in ("grey", "black", "white")]
