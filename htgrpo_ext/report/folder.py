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

from htgrpo_ext.errors import UserError, one_line

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
BROKEN = (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error, yaml.YAMLError)


@contextmanager
def _reading(file: Path) -> Iterator[Path]:
    try:
        yield file
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or one_line(error)})") from None
    except BROKEN as error:
        raise UserError(f"{file}: broken or incomplete ({one_line(error) or type(error).__name__})") from None


@dataclass(frozen=True)
class Scored:
    """One evaluation: eval/base.npz or eval/trained.npz."""

    kept_QI: NDArray  # [Q, I, ...], what the benchmark saves of each image
    correct_QI: NDArray  # bool
    partial_QI: NDArray  # float32
    reasons_QI: NDArray  # str


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


def read_metrics(folder: Path) -> tuple[list[dict], list[dict]]:
    """(updates, cycles) of metrics.jsonl, in order; null (no group of a cycle was scored) is read as NaN."""
    with _reading(folder / "metrics.jsonl") as file:
        lines = file.read_text().splitlines()
        entries = [{k: math.nan if v is None else v for k, v in json.loads(line).items()} for line in lines]
        if not entries:
            raise ValueError("no records")
        return [e for e in entries if e["kind"] == "update"], [e for e in entries if e["kind"] == "cycle"]


def read_prompts(folder: Path) -> list[dict]:
    """The Q prompts of the evaluation."""
    with _reading(folder / "eval" / "prompts.json") as file:
        return [prompt | {key: prompt[key] for key in ("prompt", "tag")} for prompt in json.loads(file.read_text())]


def read_scored(folder: Path, which: str) -> Scored:
    """The evaluation of the `base` or the `trained` model."""
    with _reading(folder / "eval" / f"{which}.npz") as file, np.load(file) as arrays:
        return Scored(*(arrays[name] for name in ("kept", "correct", "partial", "reasons")))


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
        return config
