"""What a finished run leaves in its folder, read back.

Q prompts, I images per prompt, N image tokens, K updates.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scored:
    """One evaluation: eval/base.npz or eval/trained.npz."""

    codes_QIN: NDArray  # uint16
    correct_QI: NDArray  # bool
    partial_QI: NDArray  # float32
    reasons_QI: NDArray  # str


@dataclass(frozen=True)
class ShownRollout:
    """One rollout of the last cycle, with the support sets of its K updates: rollout.npz and rollout.json."""

    prompt: str
    reward: float
    codes_N: NDArray  # int
    rank_N: NDArray  # int, 1..N
    supports_KN: NDArray  # how often each token counts in each update
    stages: list[str]


def read_metrics(folder: Path) -> tuple[list[dict], list[dict]]:
    """(updates, cycles) of metrics.jsonl, in order; what a cycle without a scored group has not is NaN."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    entries = [{k: math.nan if v is None else v for k, v in json.loads(line).items()} for line in lines]
    return [e for e in entries if e["kind"] == "update"], [e for e in entries if e["kind"] == "cycle"]


def read_prompts(folder: Path) -> list[dict]:
    """The Q prompts of the evaluation."""
    return json.loads((folder / "eval" / "prompts.json").read_text())


def read_scored(folder: Path, which: str) -> Scored:
    """The evaluation of the `base` or the `trained` model."""
    with np.load(folder / "eval" / f"{which}.npz") as arrays:
        return Scored(*(arrays[name] for name in ("codes", "correct", "partial", "reasons")))


def read_rollout(folder: Path) -> ShownRollout:
    """The rollout a run keeps to show."""
    words = json.loads((folder / "rollout.json").read_text())
    with np.load(folder / "rollout.npz") as arrays:
        codes_N, rank_N, supports_KN = (arrays[name].astype(int) for name in ("codes", "rank", "supports"))
        stages = [str(stage) for stage in arrays["stages"]]
    return ShownRollout(words["prompt"], words["reward"], codes_N, rank_N, supports_KN, stages)


def read_summary(folder: Path) -> dict:
    """What `write_summary` wrote."""
    return json.loads((folder / "summary.json").read_text())


def read_config(folder: Path) -> dict:
    """The resolved settings as plain data."""
    return yaml.safe_load((folder / "config.yaml").read_text())


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
