"""The contexts of methods that show the model a part of the image (paper Eq. 15, 16).

B rollouts, N image tokens, T denoising steps.
"""

import torch
from torch import Tensor

from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.views import RolloutBatch, Update, View


def remask(batch: RolloutBatch, draws: Draws, update: int, ratio: float | Tensor) -> Tensor:
    """Mask each token independently with probability `ratio` (Eq. 15, 23). bool [B, N], True = masked

    ratio  a number, or one per rollout, float [B, 1]
    """
    return draws.uniform("remask", update, shape=batch.rank_BN.shape[1:]).to(batch.rank_BN.device) < ratio


def remasked_updates(masked: list[Tensor], batch: RolloutBatch) -> list[Update]:
    """Updates of random remasking (Eq. 15): the masked tokens are targets, the others are visible, all weigh 1."""
    return [Update((View(~masked_BN, masked_BN),), batch.plain_weight(), "global") for masked_BN in masked]


def step_groups(unmask_step_BN: Tensor, merged_steps: int) -> Tensor:
    """The group of neighbouring unmask steps that each token belongs to, from 0; a group shares a context (Eq. 16).

    unmask_step_BN  integer [B, N]. A step in which a rollout unmasked nothing is not counted
    merged_steps    steps per group (TraceRL's `shrink`); 1 gives the exact contexts
    Returns         int64 [B, N]
    """
    num_steps = int(unmask_step_BN.max()) + 1
    happened_BT = torch.nn.functional.one_hot(unmask_step_BN.long(), num_steps).any(dim=1)
    place_BT = happened_BT.long().cumsum(-1) - 1
    return place_BT.gather(1, unmask_step_BN.long()) // merged_steps
