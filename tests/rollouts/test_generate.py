"""What is measured of rollouts."""

import pytest
import torch

from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.views import RolloutBatch
from htgrpo_ext.rollouts.generate import mean_entropy


def test_mean_entropy_splits_tokens_at_the_structure_count():
    # N_s = 2: structure has entropies 4 and 2 in the first rollout, 1 and 3 in the second; refinement 0.5 and 1.5
    rank_BN = torch.tensor([[1, 3, 2], [2, 1, 3]], dtype=torch.int16)
    entropy_BN = torch.tensor([[4.0, 0.5, 2.0], [1.0, 3.0, 1.5]])
    rollout = Rollout(torch.zeros(2, 3, dtype=torch.int64), rank_BN, entropy_BN)
    batch = RolloutBatch(rank_BN, rank_BN, torch.ones(2, 1, dtype=torch.bool), structure_count=2)
    assert mean_entropy(rollout, batch) == pytest.approx((2.5, 1.0))
