"""Support sets: the random part of a stage that one update trains on (paper Eq. 8, 18).

B rollouts, N image tokens.
"""

import math

from torch import Tensor


def support_size(candidates: int, rate: float) -> int:
    """ceil(rate x candidates) (Eq. 8); the slack keeps 0.07 x 100 at 7, though it is 7.000000000000001 in floats."""
    return math.ceil(rate * candidates - 1e-9)


def lowest(noise_BN: Tensor, count: int) -> Tensor:
    """The `count` entries of each row with the lowest noise, the first of equal ones. bool [B, N]"""
    return noise_BN.argsort(dim=-1, stable=True).argsort(-1) < count


def support_set(candidate_BN: Tensor, rate: float, uniform_BN: Tensor) -> Tensor:
    """Draw each rollout's support set uniformly, without replacement (Eq. 8, 18).

    candidate_BN  bool [B, N], the active stage's tokens; the same count in every row
    rate          sampling rate gamma in (0, 1]
    uniform_BN    float [B, N], independent noise in [0, 1)
    Returns       bool [B, N], ceil(rate * count) tokens per row, a subset of candidate_BN
    Raises        ValueError if a row has no candidate, or if rows differ in their count
    """
    counts = set(candidate_BN.sum(-1).tolist())
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"every rollout needs the same number of candidates, at least one; got {sorted(counts)}")
    return lowest(uniform_BN.masked_fill(~candidate_BN, 2.0), support_size(counts.pop(), rate))
