"""The native loop: Algorithm 1 of the paper on Hugging Face accelerate.

Roll out, score, compare within groups, K staged updates.

`train_cycle` is the algorithm; the rest of this file is what surrounds it. One process as it stands, several under
torchrun: every process takes its share of each cycle's prompts, and the noise of a prompt is the same
wherever it is drawn. Dropout is off throughout, because log-probabilities are compared.

P prompts, G rollouts per prompt, B = P*G, N image tokens, K updates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.objective import policy_objective
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.views import Prompts
from htgrpo_ext.rewards.mix import Pending
from htgrpo_ext.rollouts.generate import generate, mean_entropy
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.checkpoint import complete_checkpoints, load_checkpoint, save_checkpoint
from htgrpo_ext.train.run import (
    SHOWN,
    Run,
    log_cycle,
    log_update,
    newest_checkpoint,
    open_folder,
    prepare_run,
    save_pictures,
    save_shown_rollout,
    warmup_factor,
)
from htgrpo_ext.train.scoring import plan_updates, score_micro_batches


@dataclass
class NativeRun(Run):
    """A run in this loop."""

    accelerator: Accelerator = field(kw_only=True)
    backbone: Backbone = field(kw_only=True)
    forward: SharedForward = field(kw_only=True)
    optimizer: torch.optim.Optimizer = field(kw_only=True)


def train_cycle(run: NativeRun, cycle: int) -> None:
    """One pass of Algorithm 1: a batch of rollouts, and K updates on it."""
    settings, method, loop = run.settings, run.settings.method, run.settings.loop
    G, K, A = settings.rollout.rollouts_per_prompt, loop.updates_per_rollout, loop.micro_batches
    run.seconds.clear()
    run.forward.rows.clear()

    # Roll out: this process's share of the cycle's prompts, G images each; rewards are under way.
    share = process_share(run.accelerator, settings.rollout.prompts_per_cycle)
    prompts = [p for p in run.prompts.cycle(cycle)[share.start : share.stop] for _ in range(G)]
    rows = run.backbone.encode_prompts([p["prompt"] for p in prompts])
    rollout, pending = roll_out(run, cycle, share, prompts, rows)

    # Plan the K updates (what is visible, what is a target, what it weighs), and score under the old and the
    # reference policy, micro-batch by micro-batch, while reward servers finish.
    batch, updates = plan_updates(settings, rollout, rows, Draws(settings.seed, cycle, share, G))
    with run.timed("score"):
        scored = score_micro_batches(settings, run.backbone, run.forward, rows, rollout.codes_BN, updates)

    # Compare within groups. A group that a reward failed to score has no part in what follows.
    with run.timed("reward"):
        judged = run.rewards.finish(*pending)

    # Update K times. All micro-batches of an optimizer step train the same update (but for MaskGRPO as published).
    for k in range(K if judged.any_kept else 0):
        run.progress.update(k, updates[k].stage)
        with run.timed("update"):
            results = []
            for a, (part, scores) in enumerate(scored):
                index = method.update_index(k, a, A, K)
                result = policy_objective(
                    scores.of(index),
                    scores.updates[index],
                    judged.rows(part),
                    loop.clip_epsilon,
                    loop.kl_coefficient,
                    method.average,
                )
                run.accelerator.backward(result.loss / A)
                results.append(result)
            step = cycle * K + k
            norm = optimizer_step(run, step)
        log_update(run, step, [updates[k]], results, norm, run.optimizer.param_groups[0]["lr"])
    log_cycle(run, cycle, judged, mean_entropy(rollout, batch), run.forward.rows)
    shown_BN = rollout.codes_BN[::G][:SHOWN]
    save_pictures(run, cycle, prompts[::G][:SHOWN], lambda: run.backbone.decode(shown_BN))
    if cycle == loop.cycles - 1:
        save_shown_rollout(run, run.backbone, prompts[0], judged.reward_B[0].item(), rollout, batch, updates)


def roll_out(
    run: NativeRun, cycle: int, share: range, prompts: Sequence[dict], rows: Prompts
) -> tuple[Rollout, list[Pending]]:
    """Images of all rows, drawn by micro-batch: reward servers see those of one while the next is drawn.

    share  the prompts' places in the global batch; prompts and rows have G of each
    """
    settings, G, A = run.settings, run.settings.rollout.rollouts_per_prompt, run.settings.loop.micro_batches
    rollouts, pending = [], []
    for a in range(A):
        places = range(a * len(share) // A, (a + 1) * len(share) // A)
        part = slice(places.start * G, places.stop * G)
        draws = Draws(settings.seed, cycle, share[places.start : places.stop], G)
        with run.timed("rollout"):
            rollouts.append(generate(run.backbone, run.forward, rows.rows(part), draws, settings.rollout))
        with run.timed("reward"):
            codes_BN = rollouts[-1].codes_BN
            pending.append(run.rewards.begin(prompts[part], codes_BN, partial(run.backbone.decode, codes_BN)))
    return Rollout(*map(torch.cat, zip(*rollouts, strict=True))), pending


def process_share(accelerator: Accelerator, count: int) -> range:
    """The global indices of this process's prompts."""
    each = count // accelerator.num_processes
    return range(accelerator.process_index * each, (accelerator.process_index + 1) * each)


def optimizer_step(run: NativeRun, step: int) -> float:
    """Clip, step, clear; constant rate after a linear warm-up. Returns the gradient norm before clipping."""
    loop = run.settings.loop
    norm = run.accelerator.clip_grad_norm_(run.backbone.model.parameters(), loop.max_grad_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = loop.learning_rate * warmup_factor(step, loop.warmup_updates)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return float(norm)


class NativeLoop:
    """See `TrainingLoop`."""

    def __init__(self, run: NativeRun, first_cycle: int):
        self.run, self.backbone, self.first_cycle = run, run.backbone, first_cycle

    def train(self) -> None:
        run, loop = self.run, self.run.settings.loop
        for cycle in range(self.first_cycle, loop.cycles):
            train_cycle(run, cycle)
            last = cycle + 1 == loop.cycles
            if run.processes.is_main_process and ((cycle + 1) % loop.save_steps == 0 or last):
                save_checkpoint(run.settings.folder / "checkpoints", cycle + 1, self.model, run.optimizer)
            run.processes.wait_for_everyone()

    def save_model(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    @property
    def model(self) -> nn.Module:
        return self.run.accelerator.unwrap_model(self.backbone.model)


def prepare(settings: RunSettings) -> NativeRun:
    """Check everything that can be checked first, then load the model."""
    accelerator = Accelerator()
    shared, loop = prepare_run(settings), settings.loop
    backbone = load_backbone(settings.model, accelerator.device, settings.seed)
    backbone.model.eval()
    trained = [p for p in backbone.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=loop.learning_rate, betas=loop.adam_betas, weight_decay=loop.weight_decay)
    wrapped, optimizer = accelerator.prepare(backbone.model, optimizer)
    backbone.route_through(wrapped)
    forward = SharedForward(backbone.image_logits, backbone.mask_id, loop.batch_size)
    of_loop = dict(accelerator=accelerator, backbone=backbone, forward=forward, optimizer=optimizer)
    return NativeRun(**vars(shared), **of_loop)


def start(settings: RunSettings, resume: bool = False) -> NativeLoop:
    """A loop with its model loaded, its folder open, and weights and optimizer of the last checkpoint if it resumes.

    Raises UserError for an impossible batch, a missing checkpoint, or a folder that holds a run (without `resume`).
    """
    run = prepare(settings)
    checkpoint = newest_checkpoint(settings, complete_checkpoints(settings.folder / "checkpoints"), resume)
    loop = NativeLoop(run, 0)
    if checkpoint:
        loop.first_cycle = load_checkpoint(checkpoint, loop.model, run.optimizer)
    open_folder(run, loop.first_cycle)
    return loop
