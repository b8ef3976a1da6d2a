"""HT-GRPO and its baselines inside MaskGRPO's loop: what its hooks ask for, answered by the reference loop's parts.

A micro-batch is rolled out, planned and scored once a cycle, then trained in each of the cycle's K optimizer steps.
Nothing here knows MaskGRPO's code; train/upstream.py calls it from there.

P prompts, G rollouts per prompt, B rollouts of a process's micro-batch, N image tokens, K updates, A micro-batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from htgrpo_ext.core.objective import Objective, policy_objective
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.views import Prompts, RolloutBatch, Update
from htgrpo_ext.rewards.mix import Judged
from htgrpo_ext.train.rollout import generate
from htgrpo_ext.train.run import Run
from htgrpo_ext.train.scoring import BatchScores, plan_updates

CycleRow = Mapping  # "prompt", the whole "task", and where it stands: "cycle", "place" (of its prompt, 0..P-1)


@dataclass(eq=False)  # one is itself, whatever its tensors hold
class MicroBatch:
    """One process's rollouts of a micro-batch, and all that is known of them."""

    tasks: list[Mapping]
    prompts: Prompts
    draws: Draws
    rollout: Rollout
    batch: RolloutBatch
    updates: list[Update]
    scores: BatchScores | None = None
    judged: Judged | None = None


def loss_mask(update: Update, average: str, kept_B: Tensor) -> Tensor:
    """A mask m with sum(m x) / sum(m) equal to the objective's own average of x over the support. float32 [B, N]

    MaskGRPO divides by the mask's sum. "token": m counts each token as often as it is a target; "rollout": each
    rollout's counts sum to one. A rollout without a target spreads its one over all tokens, where the weight is zero.
    kept_B  bool [B], rollouts that rewards scored; the others are left out, unless there are no others
    """
    count_BN = update.target_BN.float()
    if average == "rollout":
        total_B1 = count_BN.sum(-1, keepdim=True)
        count_BN = torch.where(total_B1 > 0, count_BN / total_B1.clamp(min=1), 1.0 / count_BN.shape[-1])
    return count_BN * kept_B[:, None] if kept_B.any() else torch.ones_like(count_BN)


class Extension:
    """The state that the hooks read: the micro-batch in hand, and the optimizer step it is trained in."""

    def __init__(self, run: Run):
        self.run, self.method, self.loop = run, run.settings.method, run.settings.loop
        self.num_image_tokens = run.backbone.num_image_tokens
        self.micro: MicroBatch | None = None  # in hand
        self.cycle: list[MicroBatch] = []  # all of the cycle, in order
        self.results: list[Objective] = []  # of the optimizer step's micro-batches so far
        self._step = 0

    # --- once a cycle and micro-batch

    def roll_out(self, rows: Sequence[CycleRow], prompts: Prompts) -> Rollout:
        """Sample the rows' images and plan their K updates; the first micro-batch of a cycle forgets the last."""
        settings, G = self.run.settings, self.run.settings.rollout.rollouts_per_prompt
        places = [row["place"] for row in rows[::G]]
        if len(self.cycle) == self.loop.micro_batches:
            self.cycle = []
            self.run.forward.rows.clear()
        draws = Draws(settings.seed, rows[0]["cycle"], places, G)
        with self.run.timed("rollout"):
            rollout = generate(self.run.backbone, self.run.forward, prompts, draws, settings.rollout)
        batch, updates = plan_updates(settings, rollout, prompts, draws)
        self.micro = MicroBatch([row["task"] for row in rows], prompts, draws, rollout, batch, updates)
        self.cycle.append(self.micro)
        return rollout

    def score(self) -> BatchScores:
        """Old and reference log-probabilities of the micro-batch in hand, taken when first asked for."""
        micro, loop = self.micro, self.loop
        if micro.scores is None:
            first = self.method.update_index(0, self.cycle.index(micro), loop.micro_batches, loop.updates_per_rollout)
            with self.run.timed("score"):
                micro.scores = BatchScores(
                    self.run.forward,
                    self.run.backbone,
                    micro.prompts,
                    micro.rollout.codes_BN,
                    micro.updates,
                    first,
                    self.method.old_from_first_update,
                    loop.kl_coefficient > 0,
                )
        return micro.scores

    # --- in every optimizer step

    def enter(self, micro: MicroBatch, step: int) -> None:
        """Take up a micro-batch for optimizer step `step` (from 0)."""
        self.micro, self._step = micro, step

    @property
    def update(self) -> int:
        """k of the optimizer step."""
        return self._step % self.loop.updates_per_rollout

    def update_index(self, walked: int) -> int:
        """The update that the micro-batch in hand trains; MaskGRPO's own counter, `walked`, is not used."""
        place = self.cycle.index(self.micro)
        return self.method.update_index(self.update, place, self.loop.micro_batches, self.loop.updates_per_rollout)

    def loss_mask(self, index: int) -> Tensor:
        """See `loss_mask` above."""
        return loss_mask(self.micro.updates[index], self.method.average, self.micro.judged.kept_B)

    def kept_share(self, index: int) -> Tensor:
        """What the loss over the kept rollouts alone is to be multiplied by, so that none counts for a lost one."""
        update, kept_B = self.micro.updates[index], self.micro.judged.kept_B
        whole_BN = loss_mask(update, self.method.average, torch.ones_like(kept_B))
        return (whole_BN * kept_B[:, None]).sum() / whole_BN.sum()

    def weight(self, index: int) -> Tensor:
        """Credit weights float32 [B, N], zero for a rollout without a target."""
        update = self.micro.updates[index]
        return update.weight_BN * (update.target_BN > 0).any(-1, keepdim=True)

    def record(self, loss: Tensor, advantage_B: Tensor, new_BN: Tensor) -> None:
        """Keep what the reference loop logs of a micro-batch, with MaskGRPO's own loss."""
        micro, index = self.micro, self.update_index(0)
        update, reference = micro.updates[index], micro.scores.reference
        with torch.no_grad():
            result = policy_objective(
                new_BN.detach(),
                micro.scores.old[index],
                reference[index] if reference else None,
                advantage_B,
                update.weight_BN,
                update.target_BN,
                self.loop.clip_epsilon,
                self.loop.kl_coefficient,
                self.method.average,
                micro.judged.kept_B,
            )
        self.results.append(result._replace(loss=loss.detach()))
