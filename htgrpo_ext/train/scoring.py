"""Which log-probabilities the K updates of a rollout batch need, and which of them come for free.

At update 0 theta is theta_old: its own forward, detached, is pi_old, for itself and for every later update that
shows the model the same rows. Under HT-GRPO that is all of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from htgrpo_ext.backbones.base import Denoiser
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.objective import LogProbs
from htgrpo_ext.core.order import generation_rank
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.stages import structure_count
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
    backbone: Denoiser,
    forward: SharedForward,
    prompts: Prompts,
    codes_BN: Tensor,
    updates: Sequence[Update],
) -> list[tuple[slice, "BatchScores"]]:
    """The rows of each micro-batch, and its scores under the old and the reference policy."""
    count, scored = settings.loop.micro_batches, []
    for a in range(count):
        rows = slice(a * len(codes_BN) // count, (a + 1) * len(codes_BN) // count)
        cut = [update.rows(rows) for update in updates]
        scored.append((rows, score(settings, backbone, forward, prompts.rows(rows), codes_BN[rows], cut, a)))
    return scored


def score(
    settings: RunSettings,
    backbone: Denoiser,
    forward: SharedForward,
    prompts: Prompts,
    codes_BN: Tensor,
    updates: Sequence[Update],
    micro_batch: int,
) -> "BatchScores":
    """The scores of one micro-batch, given by its place in the optimizer step, before anything is trained on it."""
    method, loop = settings.method, settings.loop
    first = method.update_index(0, micro_batch, loop.micro_batches, loop.updates_per_rollout)
    free = [k for k, u in enumerate(updates) if method.old_from_first_update and same_contexts(u, updates[first])]
    return BatchScores(forward, backbone, prompts, codes_BN, updates, free, loop.kl_coefficient > 0)


class BatchScores:
    """Log-probabilities of one micro-batch's K updates; old and reference ones are taken when it is made.

    forward, backbone   the model; the backbone switches to the reference policy
    prompts, codes_BN   the micro-batch's rows
    updates             its K updates
    free                updates that show the model the same rows: the first forward of any of them gives pi_old of all
    """

    def __init__(
        self,
        forward: SharedForward,
        backbone: Denoiser,
        prompts: Prompts,
        codes_BN: Tensor,
        updates: Sequence[Update],
        free: Sequence[int],
        with_reference: bool,
    ):
        self.forward, self.prompts, self.codes_BN, self.updates = forward, prompts, codes_BN, updates
        self._free = list(free)
        self._old: dict[int, Tensor] = {}
        self._reference: list[Tensor] | None = None
        with torch.no_grad():
            self._keep_old([k for k in range(len(updates)) if k not in self._free], "old")
            if with_reference:
                with backbone.reference():
                    self._reference = self._score(range(len(updates)), "reference")

    def of(self, index: int) -> LogProbs:
        """Update `index` under the policy as it is now, with gradient, the old and the reference policy.

        The first call must come before the first optimizer step: pi_old of the free updates is what the policy is then.
        """
        if self._free and self._free[0] not in self._old:
            if index in self._free:
                new_BN = self._keep_old(self._free, "new")[self._free.index(index)]
                return self._log_probs(index, new_BN)
            with torch.no_grad():
                self._keep_old(self._free, "old")
        return self._log_probs(index, self._score([index], "new")[0])

    def _log_probs(self, index: int, new_BN: Tensor) -> LogProbs:
        return LogProbs(new_BN, self._old[index], self._reference[index] if self._reference else None)

    def _keep_old(self, indices: Sequence[int], kind: str) -> list[Tensor]:
        """Score these updates now, and keep what comes out as their pi_old."""
        scores = self._score(indices, kind) if indices else []
        self._old.update((k, score.detach()) for k, score in zip(indices, scores, strict=True))
        return scores

    def _score(self, indices: Sequence[int], kind: str) -> list[Tensor]:
        return self.forward.log_probs(self.prompts, self.codes_BN, [self.updates[k] for k in indices], kind)
