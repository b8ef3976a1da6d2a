"""The first cycle of a run on a stand-in model, to count its forwards.

P prompts, G rollouts per prompt, N image tokens, K updates, U rows, M wanted positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.kept import Kept
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.views import Prompts, Update
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.scoring import plan_updates, score_micro_batches

KINDS = ("rollout", "old", "reference", "new")
STUB_CODES = 32  # the stub's codebook: enough that two rollouts hardly ever show the same codes


class Reused(NamedTuple):
    """Rollout rows that compute only what has changed (`rollout.reuse`)."""

    rows: int = 0
    computed: int = 0  # positions that go through the blocks
    wanted: int = 0  # positions whose logits are wanted


class Simulated(NamedTuple):
    """One cycle on the stand-in model."""

    updates: list[Update]
    rows: dict[str, int]  # by kind
    rows_at_once: int  # most rows with gradient in one micro-batch
    positions_at_once: int  # most positions with gradient in one micro-batch
    rollout_positions: int  # whose logits the rollouts want
    rollout_positions_of_a_row: int  # most of them
    reused: Reused


class StubBackbone:
    """A `Denoiser` that returns zeros and runs no model."""

    codebook_size = STUB_CODES
    mask_id = -1  # no prompt has it

    def __init__(self, prompts: Prompts, nobody: Prompts, num_image_tokens: int):
        self.prompts, self.nobody, self.num_image_tokens = prompts, nobody, num_image_tokens
        self.positions = 0  # at which logits were wanted so far
        self.positions_of_a_row = 0  # most of them
        self.reused = Reused()

    def unconditional(self) -> Prompts:
        return self.nobody

    def image_logits(self, prompts: Prompts, codes_UN: Tensor, wanted_UN: Tensor, kept: Kept | None = None) -> Tensor:
        count = int(wanted_UN.sum())
        if kept is None or kept.computed_UN is None:
            self.positions += count
        else:
            more = Reused(len(codes_UN), int(kept.computed_UN.sum()), count)
            self.reused = Reused(*map(sum, zip(self.reused, more, strict=True)))
        self.positions_of_a_row = max(self.positions_of_a_row, int(wanted_UN.sum(-1).max()))
        return torch.zeros(count, STUB_CODES)

    @contextmanager
    def reference(self) -> Iterator[None]:
        yield


@torch.no_grad()
def simulate(settings: RunSettings, backbone: StubBackbone) -> Simulated:
    """Run the first cycle on the stand-in, which holds its P prompts."""
    method, loop, G = settings.method, settings.loop, settings.rollout.rollouts_per_prompt
    K, A, P = loop.updates_per_rollout, loop.micro_batches, settings.rollout.prompts_per_cycle
    forward = SharedForward(backbone.image_logits, backbone.mask_id, loop.batch_size)
    rows, draws = backbone.prompts.repeat(G), Draws(settings.seed, 0, range(P), G)
    rollout = generate(backbone, forward, rows, draws, settings.rollout, settings.rollout.refresh)
    sampled = backbone.positions, backbone.positions_of_a_row
    updates = plan_updates(settings, rollout, rows, draws)[1]
    most_rows = most_positions = 0
    scored = score_micro_batches(settings, backbone, forward, rows, rollout.codes_BN, updates)
    for a, (_, scores) in enumerate(scored):
        for k in range(K):
            rows_before, positions_before = forward.rows["new"], backbone.positions
            scores.of(method.update_index(k, a, A, K))
            most_rows = max(most_rows, forward.rows["new"] - rows_before)
            most_positions = max(most_positions, backbone.positions - positions_before)
    return Simulated(
        updates, {kind: forward.rows[kind] for kind in KINDS}, most_rows, most_positions, *sampled, backbone.reused
    )


def naive_rows(settings: RunSettings, updates: list[Update]) -> dict[str, int]:
    """Rows by kind without sharing: one row per rollout, view and update, in a pass each for old, reference and new."""
    rollout, kl = settings.rollout, settings.loop.kl_coefficient > 0
    scored = sum(int((view.target_BN > 0).any(-1).sum()) for update in updates for view in update.views)
    images, steps = rollout.prompts_per_cycle * rollout.rollouts_per_prompt, rollout.steps + len(rollout.guided_steps)
    return {"rollout": images * steps, "old": scored, "reference": scored * kl, "new": scored}
