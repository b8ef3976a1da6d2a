"""What a finished run leaves in its folder, read back.

Q prompts, I images per prompt, N image tokens, K updates.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray


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
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    entries = [{k: math.nan if v is None else v for k, v in json.loads(line).items()} for line in lines]
    return [e for e in entries if e["kind"] == "update"], [e for e in entries if e["kind"] == "cycle"]


def read_prompts(folder: Path) -> list[dict]:
    """The Q prompts of the evaluation."""
    return json.loads((folder / "eval" / "prompts.json").read_text())


def read_scored(folder: Path, which: str) -> Scored:
    """The evaluation of the `base` or the `trained` model."""
    with np.load(folder / "eval" / f"{which}.npz") as arrays:
        return Scored(*(arrays[name] for name in ("kept", "correct", "partial", "reasons")))


def read_rollout(folder: Path) -> ShownRollout | None:
    """The rollout that a run keeps to show; None if it keeps none, as MaskGRPO as published does not."""
    if not (folder / "rollout.json").exists():
        return None
    words, picture = json.loads((folder / "rollout.json").read_text()), (folder / "rollout.png").read_bytes()
    with np.load(folder / "rollout.npz") as arrays:
        rows, columns = arrays["grid"].tolist()
        rank_N, supports_KN = arrays["rank"].astype(int), arrays["supports"].astype(int)
        stages = arrays["stages"].tolist()
    return ShownRollout(words["prompt"], words["reward"], picture, (rows, columns), rank_N, supports_KN, stages)


def read_summary(folder: Path) -> dict:
    """What `write_summary` wrote."""
    return json.loads((folder / "summary.json").read_text())


def read_config(folder: Path) -> dict:
    """The resolved settings as plain data."""
    return yaml.safe_load((folder / "config.yaml").read_text())
