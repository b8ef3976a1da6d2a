"""Sketch-then-paint: the K updates of a rollout batch in three stages (paper Eq. 6-8, 17, 29-30).

B rollouts, N image tokens, K updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # settings check budgets with this module, and must not load torch
    from torch import Tensor

Stage = Literal["global", "structure", "refinement"]
STAGES: tuple[Stage, ...] = ("global", "structure", "refinement")
Annealing = Literal["down", "up", "constant"]


@dataclass(frozen=True)
class StagedUpdate:
    """Update k of K: its stage, and its place j = `index` among the stage's `length` updates."""

    stage: Stage
    index: int
    length: int


def schedule(budget: dict[Stage, int]) -> list[StagedUpdate]:
    """The K = sum(budget) updates in order: global, then structure, then refinement (Eq. 6, 17)."""
    return [StagedUpdate(stage, j, budget[stage]) for stage in STAGES for j in range(budget.get(stage, 0))]


def structure_count(num_tokens: int, structure_ratio: float) -> int:
    """N_s = round(rho N), half upwards: how many tokens are structure (Eq. 7)."""
    # The slack rounds 0.29 x 50 = 14.5 upwards, though it is 14.499999999999998 in floats.
    return int(structure_ratio * num_tokens + 0.5 + 1e-9)


def stage_tokens(rank_BN: Tensor, structure_count: int, stage: Stage) -> Tensor:
    """The tokens that a stage may train on (Eq. 7, 17): a cut-off by token count, not by denoising step.

    rank_BN          integer [B, N], 1..N
    structure_count  N_s
    Returns          bool [B, N], the same count in every row
    """
    if stage == "structure":
        return rank_BN <= structure_count
    if stage == "refinement":
        return rank_BN > structure_count
    return rank_BN > 0


def sampling_rate(index: int, length: int, low: float, high: float, mode: Annealing) -> float:
    """Sampling rate gamma of update `index` in a stage of `length` updates (Eq. 8, 29; "down" is Eq. 30).

    gamma = low + (high - low) f(u),   u = index / (length - 1), or 0 when length is 1
    f = 1 - u (down), u (up), 1 (constant)
    """
    u = index / (length - 1) if length > 1 else 0.0
    return low + (high - low) * {"down": 1 - u, "up": u, "constant": 1.0}[mode]
