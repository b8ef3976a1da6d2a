"""HT-GRPO and its baselines inside MaskGRPO's loop: the answers to its hooks, from the native loop's own parts.

A micro-batch is rolled out, planned, scored and judged once a cycle, then trained in each of the cycle's K optimizer
steps. Nothing here knows MaskGRPO's code; trainer.py calls it from there.

P prompts, G rollouts per prompt, B rollouts of a process's micro-batch, N image tokens, K updates, A micro-batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.objective import Judged, LogProbs, Objective, averaging_mask, kept_share
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.views import Prompts, RolloutBatch, Update
from htgrpo_ext.rewards.mix import JudgedBatch
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.train.run import Run
from htgrpo_ext.train.scoring import BatchScores, plan_updates, score, update_objective

CycleRow = Mapping  # "prompt", the whole "task", and where it stands: "cycle", "place" (of its prompt, 0..P-1)
Policy = Literal["old", "reference"]


@dataclass(frozen=True, eq=False)  # compared by identity: its tensors have no one truth value
class MicroBatch:
    """Everything about a micro-batch that is known before its first optimizer step."""

    place: int  # among the micro-batches of an optimizer step
    tasks: list[Mapping]
    prompts: Prompts
    rollout: Rollout
    batch: RolloutBatch
    updates: list[Update]
    scores: BatchScores
    judged: JudgedBatch
    answers: dict[tuple[int, int], LogProbs] = field(default_factory=dict)  # (optimizer step, update); only the last


class Extension:
    """What the hooks read: the micro-batch in hand, and the optimizer step that trains it."""

    def __init__(self, run: Run, backbone: Backbone, forward: SharedForward):
        self.run, self.backbone, self.forward = run, backbone, forward
        self.method, self.loop = run.settings.method, run.settings.loop
        self.num_image_tokens = backbone.num_image_tokens
        self.cycle: list[MicroBatch] = []  # of the cycle so far, in order
        self.results: list[Objective] = []  # of the optimizer step's micro-batches so far
        self.step = 0  # the optimizer step, from 0
        self._micro: MicroBatch | None = None

    @property
    def micro(self) -> MicroBatch:
        """The micro-batch in hand."""
        assert self._micro is not None, "MaskGRPO asks before its first rollout"
        return self._micro

    # --- once a cycle and micro-batch

    def roll_out(self, rows: Sequence[CycleRow]) -> MicroBatch:
        """Sample the rows' images, plan and score their K updates, and judge them: the next micro-batch of the cycle.

        The first micro-batch of a cycle clears the last cycle.
        """
        run, settings, G = self.run, self.run.settings, self.run.settings.rollout.rollouts_per_prompt
        if len(self.cycle) == self.loop.micro_batches:
            self.cycle = []
            self.forward.start_cycle()
        prompts = self.backbone.encode_prompts([row["prompt"] for row in rows])
        tasks, draws = (
            [row["task"] for row in rows],
            Draws(settings.seed, rows[0]["cycle"], [row["place"] for row in rows[::G]], G),
        )
        with run.timed("rollout"):
            sampling = settings.rollout
            rollout = generate(self.backbone, self.forward, prompts, draws, sampling, sampling.refresh)
        codes_BN = rollout.codes_BN
        batch, updates = plan_updates(settings, rollout, prompts, draws)
        with run.timed("reward"):  # servers work while the old and the reference policy are scored
            pending = run.rewards.begin(tasks, codes_BN, lambda: self.backbone.decode(codes_BN))
        place = len(self.cycle)
        with run.timed("score"):
            scores = score(settings, self.backbone, self.forward, prompts, codes_BN, updates, place)
        with run.timed("reward"):
            judged = run.rewards.finish(pending)
        self._micro = MicroBatch(place, tasks, prompts, rollout, batch, updates, scores, judged)
        self.cycle.append(self._micro)
        return self._micro

    # --- in every optimizer step

    def enter(self, micro: MicroBatch, step: int) -> None:
        """Take up a micro-batch for optimizer step `step` (from 0)."""
        self._micro, self.step = micro, step

    @property
    def update(self) -> int:
        """k of the optimizer step."""
        return self.step % self.loop.updates_per_rollout

    @property
    def index(self) -> int:
        """The update that the micro-batch in hand trains; MaskGRPO's own counter is not used."""
        count = self.loop.updates_per_rollout
        return self.method.update_index(self.update, self.micro.place, self.loop.micro_batches, count)

    def log_probs(self, index: int) -> LogProbs:
        """Log-probabilities of update `index` in this optimizer step, computed at the first request."""
        key, answers = (self.step, index), self.micro.answers
        if key not in answers:
            answers.clear()
            answers[key] = self.micro.scores.of(index)
        return answers[key]

    def loss_mask(self, index: int) -> Tensor:
        """See `averaging_mask`."""
        return averaging_mask(self.micro.updates[index], self.method.average, self.micro.judged.kept_B)

    def kept_share(self) -> Tensor:
        """See `kept_share` of the objective."""
        return kept_share(self.micro.updates[self.index], self.method.average, self.micro.judged.kept_B)

    def weight(self, index: int) -> Tensor:
        """Credit weights float32 [B, N], zero for a rollout without a target."""
        update = self.micro.updates[index]
        return update.weight_BN * (update.target_BN > 0).any(-1, keepdim=True)

    def record(self, loss: Tensor, advantage_B: Tensor) -> None:
        """Keep the native loop's metrics of a micro-batch, with MaskGRPO's own loss and advantages."""
        log_probs = self.log_probs(self.index)
        result = update_objective(
            self.run.settings,
            log_probs._replace(new_BN=log_probs.new_BN.detach()),
            self.micro.updates[self.index],
            Judged(self.micro.judged.reward_B, advantage_B, self.micro.judged.kept_B),
        )
        self.results.append(result._replace(loss=loss.detach()))
        self.micro.answers.clear()  # they hold the forward's graph, and this step needs them no longer


@dataclass(frozen=True)
class Answer:
    """In place of MaskGRPO's log-probabilities [K, B, N] of a policy: gives each update's [1, B, N] when indexed."""

    extension: Extension
    policy: Policy

    def __getitem__(self, index: int) -> Tensor:
        log_probs = self.extension.log_probs(index)
        answer_BN = log_probs.old_BN if self.policy == "old" else log_probs.reference_BN
        assert answer_BN is not None, "MaskGRPO asks for a reference policy without a KL term"
        return answer_BN[None]
