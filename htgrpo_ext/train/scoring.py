"""The log-probabilities that the K updates of a rollout batch need, and the loss they give.

At update 0 theta = theta_old. So its own forward, detached, is pi_old: for itself, and for every later update that
shows the model the same rows. Under HT-GRPO these are all updates, and pi_old needs no pass of its own.

B rollouts, N image tokens, K updates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from htgrpo_ext.backbones.base import Denoiser
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.objective import Judged, LogProbs, Objective, policy_objective
from htgrpo_ext.core.order import generation_rank
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.stages import structure_count
from htgrpo_ext.core.views import Prompts, RolloutBatch, Update, even_share, same_contexts
from htgrpo_ext.settings import RunSettings


def plan_updates(
    settings: RunSettings, rollout: Rollout, prompts: Prompts, draws: Draws
) -> tuple[RolloutBatch, list[Update]]:
    """The generation order of a rollout batch, and the K updates that the method makes of it."""
    rank_BN = generation_rank(rollout.unmask_step_BN, settings.method.ties)
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
    """Each micro-batch's rows among the B rollouts, and its scores under the old and the reference policy."""
    count, scored = settings.loop.micro_batches, []
    for a in range(count):
        share = even_share(len(codes_BN), a, count)
        rows = slice(share.start, share.stop)
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
    """The scores of one micro-batch, taken before it is trained on.

    micro_batch  its place among the micro-batches of an optimizer step
    """
    method, loop = settings.method, settings.loop
    first = method.update_index(0, micro_batch, loop.micro_batches, loop.updates_per_rollout)
    free = [k for k, u in enumerate(updates) if method.old_from_first_update and same_contexts(u, updates[first])]
    return BatchScores(forward, backbone, prompts, codes_BN, updates, free, loop.kl_coefficient > 0)


class BatchScores:
    """Log-probabilities of one micro-batch's K updates. The constructor takes those of the old and reference policy.

    forward, backbone   the model; the backbone switches to the reference policy
    prompts, codes_BN   the micro-batch's rows
    updates             its K updates
    free                updates that show the model the same rows: one forward before the first step is pi_old of all
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
        """Log-probabilities of update `index` under the current policy (with gradient), the old and the reference one.

        The first call must come before the first optimizer step: it also takes pi_old of the free updates.
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
        """Score these updates under the current policy, and keep the result as their pi_old."""
        scores = self._score(indices, kind) if indices else []
        self._old.update((k, score.detach()) for k, score in zip(indices, scores, strict=True))
        return scores

    def _score(self, indices: Sequence[int], kind: str) -> list[Tensor]:
        return self.forward.log_probs(self.prompts, self.codes_BN, [self.updates[k] for k in indices], kind)


def update_objective(settings: RunSettings, log_probs: LogProbs, update: Update, judged: Judged) -> Objective:
    """`policy_objective` with the run's own clipping, KL coefficient and average."""
    loop = settings.loop
    return policy_objective(log_probs, update, judged, loop.clip_epsilon, loop.kl_coefficient, settings.method.average)
