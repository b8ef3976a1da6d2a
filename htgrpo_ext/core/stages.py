"""Sketch-then-paint: the K updates of a rollout batch in three stages (paper Eq. 6-8, 17, 29-30).

B rollouts, N image tokens, K updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # settings check budgets by this module, and load no torch
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


def structure_count(num_tokens: int, structure_ratio: float) -> int:
    """N_s = round(rho N), half upwards: how many of the first tokens are structure (Eq. 7)."""
    # The tiny slack takes 0.29 x 50 for 14.5, though it is 14.499999999999998 in floats.
    return int(structure_ratio * num_tokens + 0.5 + 1e-9)


def stage_tokens(rank_BN: Tensor, structure_count: int, stage: Stage) -> Tensor:
    """The tokens a stage may train on (Eq. 7): a cut-off by token count, not by denoising step.

    rank_BN  int [B, N], 1..N      Returns  bool [B, N], the same count in every row
    """
    if stage == "structure":
        return rank_BN <= structure_count
    if stage == "refinement":
        return rank_BN > structure_count
    return rank_BN > 0


def sampling_rate(index: int, length: int, low: float, high: float, mode: Annealing) -> float:
    """gamma of update `index` of a stage of `length` updates (Eq. 8, 29-30).

    low + (high - low) f(u), u = index / (length - 1), or 0 when length is 1;
    f = 1 - u (down), u (up), 1 (constant)
    """
    u = index / (length - 1) if length > 1 else 0.0
    return low + (high - low) * {"down": 1 - u, "up": u, "constant": 1.0}[mode]
