"""The native loop: Algorithm 1 of the paper on Hugging Face accelerate.

Roll out, score, compare within groups, update K times: `train_cycle` is the algorithm, and the rest of this file
surrounds it. It runs in one process, or in several under torchrun: every process takes its share of each cycle's
prompts, and a prompt's noise is the same in whichever process it is drawn. Dropout is off throughout, because
log-probabilities are compared.

P prompts, G rollouts per prompt, B = P*G rollouts, N image tokens, K updates, A micro-batches.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.objective import Objective
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.views import Prompts, even_share
from htgrpo_ext.errors import Stopped, UserError
from htgrpo_ext.rewards.mix import JudgedBatch, Pending
from htgrpo_ext.rollouts.generate import generate, mean_entropy, memory_named
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.checkpoint import complete_checkpoints, read_checkpoint, restore, save_checkpoint
from htgrpo_ext.train.folder import newest_checkpoint, open_folder
from htgrpo_ext.train.guard import WeightsLost
from htgrpo_ext.train.held_out import evaluate_held_out
from htgrpo_ext.train.records import SHOWN, log_cycle, log_update, save_pictures, save_shown_rollout
from htgrpo_ext.train.run import Run, prepare_run, warmup_factor
from htgrpo_ext.train.scoring import BatchScores, plan_updates, score_micro_batches, update_objective

MORE_MEMORY = "; more loop.micro_batches or model.activation_checkpointing take less"


@dataclass
class NativeLoop:
    """See `TrainingLoop`."""

    run: Run
    accelerator: Accelerator
    backbone: Backbone
    forward: SharedForward
    optimizer: torch.optim.Optimizer
    cycles_done: int = 0
    cycles_saved: int = 0

    def train(self) -> None:
        run = self.run
        try:
            with run.stop.postponed():
                evaluate_held_out(run, self.backbone, self.cycles_done)
                while self.cycles_done < run.settings.loop.cycles:
                    train_cycle(self, self.cycles_done)
                    evaluate_held_out(run, self.backbone, self.cycles_done)
                    if run.save_due(self.cycles_done):
                        self.save()
                    run.check()
        except WeightsLost:
            raise
        except (UserError, Stopped):  # raised before a cycle's first update, or after its last
            self.save()
            raise

    def save(self) -> None:
        """Write a checkpoint, unless the last one is of this cycle."""
        if self.cycles_saved == self.cycles_done:
            return
        if self.run.processes.is_main_process:
            save_checkpoint(self._folder, self.cycles_done, self.backbone.model, self.optimizer)
        self.run.processes.wait_for_everyone()
        self.cycles_saved, self.run.saved_at = self.cycles_done, time.monotonic()

    def checkpoints(self) -> list[tuple[int, Path]]:
        return complete_checkpoints(self._folder)

    @property
    def _folder(self) -> Path:
        return self.run.settings.folder / "checkpoints"

    def save_model(self, folder: Path) -> None:
        self.backbone.save(folder)


def train_cycle(loop: NativeLoop, cycle: int) -> None:
    """One pass of Algorithm 1 (Eq. 5): a batch of rollouts, and K updates on it."""
    run, settings = loop.run, loop.run.settings
    G, K = settings.rollout.rollouts_per_prompt, settings.loop.updates_per_rollout
    run.seconds.clear()
    loop.forward.start_cycle()

    # Roll out this process's share of the cycle's prompts, G images each. Reward servers start at once.
    share = even_share(settings.rollout.prompts_per_cycle, run.processes.process_index, run.processes.num_processes)
    prompts = [p for p in run.prompts.cycle(cycle)[share.start : share.stop] for _ in range(G)]
    rows = loop.backbone.encode_prompts([p["prompt"] for p in prompts])
    rollout, pending = roll_out(loop, cycle, share, prompts, rows)

    # Plan the K updates (which tokens are visible, which are targets, how much each weighs). Score under the old and
    # the reference policy, micro-batch by micro-batch, while reward servers finish.
    batch, updates = plan_updates(settings, rollout, rows, Draws(settings.seed, cycle, share, G))
    with run.timed("score"), memory_named("scoring", loop.forward, MORE_MEMORY):
        scored = score_micro_batches(settings, loop.backbone, loop.forward, rows, rollout.codes_BN, updates)

    # Compare rewards within groups. A group that a reward failed to score is left out of the updates.
    with run.timed("reward"):
        judged = run.rewards.finish(*pending)

    run.stop.check()
    # Update K times. All micro-batches of an optimizer step train the same update (except in MaskGRPO as published).
    for k in range(K if judged.any_kept else 0):
        run.progress.update(k, updates[k].stage)
        step = cycle * K + k
        with run.timed("update"):
            results = add_up_gradients(loop, k, scored, judged)
            norm = optimizer_step(loop, step, results)
        log_update(run, step, [updates[k]], results, norm, loop.optimizer.param_groups[0]["lr"])
    loop.cycles_done = cycle + 1  # before anything that may fail: from here on a checkpoint is of this cycle
    log_cycle(run, cycle, judged, mean_entropy(rollout, batch), loop.forward.rows)
    shown_BN = rollout.codes_BN[::G][:SHOWN]
    save_pictures(run, cycle, prompts[::G][:SHOWN], lambda: loop.backbone.decode(shown_BN))
    if cycle == settings.loop.cycles - 1:
        save_shown_rollout(run, loop.backbone, prompts[0], judged.reward_B[0].item(), rollout, batch, updates)


def roll_out(
    loop: NativeLoop, cycle: int, share: range, prompts: Sequence[dict], rows: Prompts
) -> tuple[Rollout, list[Pending]]:
    """Sample images for all rows, one micro-batch after another. Servers score one while the next is sampled.

    share  the prompts' places in the global batch; prompts and rows hold each prompt G times
    """
    run, settings = loop.run, loop.run.settings
    G, A = settings.rollout.rollouts_per_prompt, settings.loop.micro_batches
    rollouts, pending, refresh = [], [], settings.rollout.refresh
    for a in range(A):
        run.stop.check()
        places = even_share(len(share), a, A)
        part = slice(places.start * G, places.stop * G)
        draws = Draws(settings.seed, cycle, share[places.start : places.stop], G)
        with run.timed("rollout"):
            rollouts.append(generate(loop.backbone, loop.forward, rows.rows(part), draws, settings.rollout, refresh))
        with run.timed("reward"):
            codes_BN = rollouts[-1].codes_BN
            pending.append(run.rewards.begin(prompts[part], codes_BN, partial(loop.backbone.decode, codes_BN)))
    return Rollout(*map(torch.cat, zip(*rollouts, strict=True))), pending


def add_up_gradients(
    loop: NativeLoop, k: int, scored: Sequence[tuple[slice, BatchScores]], judged: JudgedBatch
) -> list[Objective]:
    """The objectives of update k in every micro-batch, and their gradients, added up in the weights.

    Raises UserError if they do not fit into the device's memory; WeightsLost after the cycle's first update.
    """
    settings, A = loop.run.settings, len(scored)

    def work() -> list[Objective]:
        results = []
        for a, (part, scores) in enumerate(scored):
            index = settings.method.update_index(k, a, A, settings.loop.updates_per_rollout)
            result = update_objective(settings, scores.of(index), scores.updates[index], judged.rows(part))
            loop.accelerator.backward(result.loss / A)
            results.append(result)
        return results

    with memory_named("update", loop.forward, MORE_MEMORY, WeightsLost if k else UserError):
        if loop.run.processes.num_processes > 1:  # one process alone cannot take a backward back
            return work()
        return loop.forward.batch_size.retried(work, loop.optimizer.zero_grad)


def optimizer_step(loop: NativeLoop, step: int, results: Sequence[Objective]) -> float:
    """Clip the gradient, step, clear; the learning rate is constant after a linear warm-up.

    results  of the step's micro-batches; the guard skips the step if a loss or the gradient is not finite
    Returns  the gradient norm before clipping
    """
    settings = loop.run.settings.loop
    norm = loop.accelerator.clip_grad_norm_(loop.backbone.model.parameters(), settings.max_grad_norm)
    for group in loop.optimizer.param_groups:
        group["lr"] = settings.learning_rate * warmup_factor(step, settings.warmup_updates)
    norm = torch.as_tensor(norm)
    loop.run.guard.watch(norm, *(result.loss for result in results))
    loop.optimizer.step()
    loop.optimizer.zero_grad()
    return norm.item()


def start(settings: RunSettings, resume: bool = False) -> NativeLoop:
    """Check everything that can be checked, load the model, open the folder; resume from the last checkpoint if asked.

    Raises UserError for an impossible batch, a missing or damaged checkpoint, or a folder that holds a run (without
    `resume`).
    """
    newest = newest_checkpoint(settings, complete_checkpoints(settings.folder / "checkpoints"), resume)
    saved = read_checkpoint(newest) if newest else None
    accelerator = Accelerator()
    run, options = prepare_run(settings), settings.loop
    backbone = load_backbone(settings.model, accelerator.device, settings.seed)
    backbone.model.eval()
    trained = [p for p in backbone.model.parameters() if p.requires_grad]
    # The fused kernel rounds otherwise, by 1e-7; on a CPU runs keep the numbers that they always had.
    fused = True if accelerator.device.type == "cuda" else None
    optimizer = torch.optim.AdamW(
        trained, options.learning_rate, options.adam_betas, weight_decay=options.weight_decay, fused=fused
    )
    run.guard.protect(optimizer)
    wrapped, optimizer = accelerator.prepare(backbone.model, optimizer)
    backbone.route_through(wrapped)
    if options.compile:
        backbone.compile_blocks(options.compile)
    forward = SharedForward(backbone.image_logits, backbone.mask_id, options.batch_size)
    loop = NativeLoop(run, accelerator, backbone, forward, optimizer)
    if saved:
        restore(saved, backbone.model, optimizer)
        loop.cycles_done = loop.cycles_saved = saved.cycle
    open_folder(run, loop.cycles_done)
    return loop
