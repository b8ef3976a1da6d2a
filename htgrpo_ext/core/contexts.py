"""What a token's log-probability is conditioned on, of the families that show a part of the image (Eq. 15, 16).

B rollouts, N image tokens, T denoising steps.
"""

import torch
from torch import Tensor

from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.views import RolloutBatch, Update, View


def remask(batch: RolloutBatch, draws: Draws, update: int, ratio: float | Tensor) -> Tensor:
    """Mask each token with probability `ratio` (a number, or one per rollout [B, 1]). bool [B, N], True = masked"""
    return draws.uniform("remask", update, shape=batch.rank_BN.shape[1:]).to(batch.rank_BN.device) < ratio


def remasked_updates(masked: list[Tensor], batch: RolloutBatch) -> list[Update]:
    """Random remasking (Eq. 15): the targets of an update are the tokens masked in it, given the others."""
    return [Update((View(~masked_BN, masked_BN),), batch.plain_weight(), "global") for masked_BN in masked]


def step_groups(unmask_step_BN: Tensor, merged_steps: int) -> Tensor:
    """Number of the group of neighbouring steps each token belongs to, 0 first (Eq. 16: a group is one context).

    Steps in which a rollout unmasked nothing do not count; of the others every `merged_steps` neighbours make one
    group (TraceRL's `shrink`). int64 [B, N]
    """
    num_steps = int(unmask_step_BN.max()) + 1
    happened_BT = torch.nn.functional.one_hot(unmask_step_BN.long(), num_steps).any(dim=1)
    place_BT = happened_BT.long().cumsum(-1) - 1
    return place_BT.gather(1, unmask_step_BN.long()) // merged_steps
