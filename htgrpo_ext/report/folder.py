"""What a finished run leaves in its folder, read back. UserError names a file that is missing or broken.

Q prompts, I images per prompt, N image tokens, K updates.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.settings import RunSettings

SUMMARY = (
    "name",
    "method",
    "label",
    "seed",
    "base",
    "trained",
    "reward",
    "cycles",
    "seconds",
)  # what all summaries have
BROKEN = (
    ValueError,
    ZeroDivisionError,
    SyntaxError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    yaml.YAMLError,
)


@contextmanager
def _reading(file: Path) -> Iterator[Path]:
    try:
        yield file
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or one_line(error)})") from None
    except BROKEN as error:
        raise UserError(f"{file}: broken or incomplete ({one_line(error) or type(error).__name__})") from None


def is_whole(evaluation: Path) -> bool:
    """Whether an eval/*.npz is there and whole, with its pictures (a packed run has none)."""
    try:
        with np.load(evaluation) as arrays:
            return all(arrays[name] is not None for name in arrays.files) and arrays["kept"].size > 0
    except (OSError, *BROKEN):
        return False


@dataclass(frozen=True)
class Scored:
    """One evaluation: eval/base.npz or eval/trained.npz."""

    kept_QI: NDArray  # [Q, I, ...], what the benchmark saves of each image
    correct_QI: NDArray  # bool
    partial_QI: NDArray  # float32
    reasons_QI: NDArray  # str
    measures: dict[str, NDArray | str]  # of each of the benchmark's measures float64 [Q, I], or why it is lacking


@dataclass(frozen=True)
class ShownRollout:
    """One rollout of the last cycle, with the support sets of its K updates: rollout.png, .npz and .json."""

    prompt: str
    reward: float
    picture: bytes  # a PNG
    grid: tuple[int, int]  # rows and columns of its N tokens
    rank_N: NDArray  # int, 1..N
    supports_KN: NDArray  # how often each token counts in each update
    stages: list[str]


@dataclass(frozen=True)
class PictureRow:
    """Pictures side by side, as a run saves them after some of its cycles."""

    cycles_done: int
    prompts: list[str]  # one a picture
    pictures: list[Image.Image]


def read_metrics(folder: Path) -> tuple[list[dict], list[dict]]:
    """(updates, cycles) of metrics.jsonl, in order; null (no group of a cycle was scored) is read as NaN."""
    records = _records(folder)
    return records["update"], records["cycle"]


def read_held_out(folder: Path) -> list[dict]:
    """The evaluations of metrics.jsonl that were made while training, in order; null (no image was scored) is NaN."""
    return _records(folder)["eval"]


def _records(folder: Path) -> dict[str, list[dict]]:
    """The records of metrics.jsonl, by kind."""
    with _reading(folder / "metrics.jsonl") as file:
        lines = file.read_text().splitlines()
        entries = [{k: math.nan if v is None else v for k, v in json.loads(line).items()} for line in lines]
        if not entries:
            raise ValueError("no records")
        return {kind: [entry for entry in entries if entry["kind"] == kind] for kind in ("update", "cycle", "eval")}


def read_best(folder: Path) -> dict | None:
    """`cycles_done` and `reward_mean` of the model in best/; None if none was kept."""
    if not (folder / "best" / "best.json").exists():
        return None
    with _reading(folder / "best" / "best.json") as file:
        found = json.loads(file.read_text())
        return {key: found[key] for key in ("cycles_done", "reward_mean")}


def read_pictures(folder: Path) -> list[PictureRow]:
    """The pictures in a folder such as `pictures/`, by cycle; none if there is no such folder."""
    rows = []
    for path in sorted(folder.glob("cycle-*.png")):
        with _reading(path) as file, Image.open(file) as image:
            words: dict[str, str] = getattr(image, "text", {})
            prompts = [words[key] for key in sorted(words) if key.startswith("prompt ")]
            width = image.width // len(prompts)
            tiles = [image.crop((i * width, 0, (i + 1) * width, image.height)) for i in range(len(prompts))]
            rows.append(PictureRow(int(path.stem.removeprefix("cycle-")), prompts, tiles))
    return rows


def read_prompts(folder: Path) -> list[dict]:
    """The Q prompts of the evaluation."""
    with _reading(folder / "eval" / "prompts.json") as file:
        return [prompt | {key: prompt[key] for key in ("prompt", "tag")} for prompt in json.loads(file.read_text())]


def read_scored(folder: Path, which: str) -> Scored:
    """The evaluation of the `base` or the `trained` model."""
    with _reading(folder / "eval" / f"{which}.npz") as file, np.load(file) as arrays:
        kept, correct, partial, reasons = (arrays[name] for name in ("kept", "correct", "partial", "reasons"))
        measures: dict[str, NDArray | str] = {}
        if "measures" in arrays:
            each = zip(arrays["measured"].tolist(), arrays["lacking"].tolist(), strict=True)
            measures = {name: why or arrays["measures"][..., m] for m, (name, why) in enumerate(each)}
        return Scored(kept, correct, partial, reasons, measures)


def read_rollout(folder: Path) -> ShownRollout | None:
    """The rollout that a run keeps to show; None if it keeps none, as MaskGRPO as published does not."""
    if not (folder / "rollout.json").exists():
        return None
    with _reading(folder / "rollout.json") as file:
        words = json.loads(file.read_text())
        prompt, reward = words["prompt"], words["reward"]
    with _reading(folder / "rollout.png") as file:
        picture = file.read_bytes()
    with _reading(folder / "rollout.npz") as file, np.load(file) as arrays:
        rows, columns = arrays["grid"].tolist()
        rank_N, supports_KN = arrays["rank"].astype(int), arrays["supports"].astype(int)
        stages = arrays["stages"].tolist()
    return ShownRollout(prompt, reward, picture, (rows, columns), rank_N, supports_KN, stages)


def read_summary(folder: Path) -> dict:
    """What `write_summary` wrote."""
    with _reading(folder / "summary.json") as file:
        summary = json.loads(file.read_text())
        if missing := [key for key in SUMMARY if key not in summary]:
            raise ValueError(f"`{missing[0]}` is missing")
        return summary


def read_config(folder: Path) -> dict:
    """The resolved settings as plain data."""
    with _reading(folder / "config.yaml") as file:
        config = yaml.safe_load(file.read_text())
        if not isinstance(config, dict):
            raise ValueError("no settings")
        required = (name for name, field in RunSettings.model_fields.items() if field.is_required())
        if missing := [name for name in required if name not in config]:
            raise ValueError(f"`{missing[0]}` is missing")
        return config
