"""Support sets: the random part of a stage that one update trains on (paper Eq. 8).

B rollouts, N image tokens.
"""

import math

from torch import Tensor


def support_size(candidates: int, rate: float) -> int:
    """ceil(rate x candidates); the tiny slack keeps 0.07 x 100 at 7, though it is 7.000000000000001 in floats."""
    return math.ceil(rate * candidates - 1e-9)


def support_set(candidate_BN: Tensor, rate: float, uniform_BN: Tensor) -> Tensor:
    """Draw each rollout's support set uniformly, without replacement (Eq. 8).

    candidate_BN  bool [B, N], the active stage's tokens; the same count in every row
    rate          sampling rate gamma in (0, 1]
    uniform_BN    float [B, N], independent noise in [0, 1)
    Returns       bool [B, N], ceil(rate * count) tokens per row, a subset of candidate_BN
    Raises        ValueError if a row has no candidate, or rows differ in their count
    """
    counts = set(candidate_BN.sum(-1).tolist())
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"every rollout needs the same number of candidates, at least one; got {sorted(counts)}")
    # The candidates with the smallest noise; everything else is pushed behind them.
    noise_BN = uniform_BN.masked_fill(~candidate_BN, 2.0)
    order_BN = noise_BN.argsort(dim=-1, stable=True).argsort(-1)
    return order_BN < support_size(counts.pop(), rate)
