"""Trajectory recording: TraceRL / TraceGRPO, and AGRPO's sampled steps (Eq. 16).

Each token is scored in the context it was generated in: tokens of earlier steps visible, all others masked.

B rollouts, N image tokens, K updates.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from htgrpo_ext.methods.base import Method
from htgrpo_ext.section import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from htgrpo_ext.core.randomness import Draws
    from htgrpo_ext.core.views import RolloutBatch, Update


class TraceGRPO(Method):
    """All N tokens in every update, each in the view of its own step.

    merged_steps      s, neighbouring steps that share a view; 1 is exact
    steps_per_update  train each update on so many random views of a rollout (AGRPO); None: on all
    """

    name: Literal["tracegrpo"]
    merged_steps: Tokens = 1
    steps_per_update: Tokens | None = None

    exact_rollouts: ClassVar[bool] = True

    def updates(self, batch: "RolloutBatch", draws: "Draws", count: int) -> "list[Update]":
        """One view per group of steps: earlier groups visible, the group's own tokens targets, all weigh 1 (Eq. 16)."""
        from htgrpo_ext.core.contexts import step_groups
        from htgrpo_ext.core.views import Update, View

        group_BN = step_groups(batch.unmask_step_BN, self.merged_steps)
        num_groups = int(group_BN.max()) + 1
        weight_BN = batch.plain_weight()
        updates = []
        for k in range(count):
            chosen_BN = self._chosen(group_BN, num_groups, draws, k)
            views = tuple(View(group_BN < j, (group_BN == j) & chosen_BN) for j in range(num_groups))
            updates.append(Update(views, weight_BN, "global"))
        return updates

    def _chosen(self, group_BN: "Tensor", num_groups: int, draws: "Draws", update: int) -> "Tensor":
        """The tokens of the steps that this update trains on. bool [B, N]"""
        import torch

        from htgrpo_ext.core.support import lowest

        if self.steps_per_update is None or self.steps_per_update >= num_groups:
            return torch.ones_like(group_BN, dtype=torch.bool)
        # Noise for N groups, the most there can be: the draw must not depend on the rest of the batch.
        noise_BJ = draws.uniform("steps", update, shape=group_BN.shape[1:])[:, :num_groups].to(group_BN.device)
        # A rollout with fewer groups than the longest never draws one that it lacks.
        exists_BJ = torch.arange(num_groups, device=group_BN.device) <= group_BN.max(dim=1, keepdim=True).values
        return lowest(noise_BJ.masked_fill(~exists_BJ, 2.0), self.steps_per_update).gather(1, group_BN)
