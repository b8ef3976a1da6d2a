"""Which log-probabilities the K updates of a rollout batch need, and which of them come for free.

At update 0 theta is theta_old: its own forward, detached, is pi_old, for itself and for every later update that
shows the model the same rows. Under HT-GRPO that is all of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.order import generation_rank, structure_count
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.views import Prompts, RolloutBatch, Update, same_contexts
from htgrpo_ext.settings import RunSettings


def plan_updates(
    settings: RunSettings, rollout: Rollout, prompts: Prompts, draws: Draws
) -> tuple[RolloutBatch, list[Update]]:
    """The generation order of a rollout batch, and the K updates the method makes of it."""
    rank_BN = generation_rank(rollout.unmask_step_BN)
    num_structure = structure_count(rank_BN.shape[1], settings.method.structure_ratio)
    batch = RolloutBatch(rollout.unmask_step_BN, rank_BN, prompts.words_BL, num_structure)
    return batch, settings.method.updates(batch, draws, settings.loop.updates_per_rollout)


def score_micro_batches(
    settings: RunSettings,
    backbone: Backbone,
    forward: SharedForward,
    prompts: Prompts,
    codes_BN: Tensor,
    updates: Sequence[Update],
) -> list[tuple[slice, "BatchScores"]]:
    """The rows of each micro-batch, and its scores under the old and the reference policy."""
    count, loop = settings.loop.micro_batches, settings.loop
    scored = []
    for a in range(count):
        rows = slice(a * len(codes_BN) // count, (a + 1) * len(codes_BN) // count)
        first = settings.method.update_index(0, a, count, loop.updates_per_rollout)
        cut = [update.rows(rows) for update in updates]
        free = settings.method.old_from_first_update
        scores = BatchScores(
            forward, backbone, prompts.rows(rows), codes_BN[rows], cut, first, free, loop.kl_coefficient > 0
        )
        scored.append((rows, scores))
    return scored


class BatchScores:
    """Old, reference and new log-probabilities of one micro-batch, over all its updates.

    forward, backbone   the model; the backbone switches to the reference policy
    prompts, codes_BN   the micro-batch's rows
    updates             its K updates
    first               the update trained first, which pi_old may be read from
    free_old            whether it is, or pi_old gets a pass of its own
    """

    def __init__(
        self,
        forward: SharedForward,
        backbone: Backbone,
        prompts: Prompts,
        codes_BN: Tensor,
        updates: Sequence[Update],
        first: int,
        free_old: bool,
        with_reference: bool,
    ):
        self.forward, self.prompts, self.codes_BN, self.updates = forward, prompts, codes_BN, updates
        # The updates whose pi_old the first forward gives; the others need a pass before anything is trained.
        self._free = [k for k, u in enumerate(updates) if free_old and same_contexts(u, updates[first])]
        self._first = first
        rest = [k for k in range(len(updates)) if k not in self._free]
        self.old: dict[int, Tensor] = {}
        self.reference: list[Tensor] | None = None
        with torch.no_grad():
            if rest:
                self.old.update(zip(rest, self._score([updates[k] for k in rest], "old"), strict=True))
            if with_reference:
                with backbone.reference():
                    self.reference = self._score(updates, "reference")

    def _score(self, updates: Sequence[Update], kind: str) -> list[Tensor]:
        return self.forward.log_probs(self.prompts, self.codes_BN, updates, kind)

    def new(self, index: int) -> Tensor:
        """Log-probabilities [B, N] of update `index` under the policy as it is now, with gradient."""
        if self._free and index == self._first and index not in self.old:
            scores = self._score([self.updates[k] for k in self._free], "new")
            self.old.update((k, score.detach()) for k, score in zip(self._free, scores, strict=True))
            return scores[self._free.index(index)]
        return self._score([self.updates[index]], "new")[0]
