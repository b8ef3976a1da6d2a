"""The objective, called with each of its tensors by itself."""

import torch
from torch import Tensor

from htgrpo_ext.core.objective import Average, Judged, LogProbs, Objective, policy_objective
from htgrpo_ext.core.views import Update, View


def objective(
    new_BN: Tensor,
    old_BN: Tensor,
    reference_BN: Tensor | None,
    advantage_B: Tensor,
    weight_BN: Tensor,
    target_BN: Tensor,
    clip_epsilon: float,
    kl_coefficient: float,
    average: Average = "rollout",
    kept_B: Tensor | None = None,
) -> Objective:
    update = Update((View(torch.zeros_like(target_BN, dtype=torch.bool), target_BN),), weight_BN, "global")
    kept_B = torch.ones_like(advantage_B, dtype=torch.bool) if kept_B is None else kept_B
    judged = Judged(advantage_B, advantage_B, kept_B)
    return policy_objective(
        LogProbs(new_BN, old_BN, reference_BN), update, judged, clip_epsilon, kl_coefficient, average
    )
