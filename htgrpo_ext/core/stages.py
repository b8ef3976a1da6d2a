"""Sketch-then-paint: the K updates of a rollout batch in three stages (paper Eq. 6-8, 17, 29-30).

B rollouts, N image tokens, K updates.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Stage = Literal["global", "structure", "refinement"]
STAGES: tuple[Stage, ...] = ("global", "structure", "refinement")
Annealing = Literal["down", "up", "constant"]


@dataclass(frozen=True)
class StagedUpdate:
    """Update k of K: its stage, and its place j among the stage's `length` updates."""

    stage: Stage
    index: int
    length: int


def schedule(budget: dict[Stage, int]) -> list[StagedUpdate]:
    """The K = sum of budget updates in order: global, then structure, then refinement (Eq. 6)."""
    return [StagedUpdate(stage, j, budget[stage]) for stage in STAGES for j in range(budget.get(stage, 0))]


def stage_tokens(rank_BN: Tensor, structure_count: int, stage: Stage) -> Tensor:
    """The tokens a stage may train on (Eq. 7): a cut-off by token count, not by denoising step.

    rank_BN  int [B, N], 1..N      Returns  bool [B, N], the same count in every row
    """
    if stage == "structure":
        return rank_BN <= structure_count
    if stage == "refinement":
        return rank_BN > structure_count
    return torch.ones_like(rank_BN, dtype=torch.bool)


def sampling_rate(index: int, length: int, low: float, high: float, mode: Annealing) -> float:
    """gamma of update `index` of a stage of `length` updates (Eq. 8, 29-30).

    low + (high - low) f(u), u = index / (length - 1), or 0 when length is 1;
    f = 1 - u (down), u (up), 1 (constant)
    """
    u = index / (length - 1) if length > 1 else 0.0
    return low + (high - low) * {"down": 1 - u, "up": u, "constant": 1.0}[mode]
