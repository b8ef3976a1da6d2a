"""MaskGRPO's trainer, twice: with the native loop's parts in it, and as published.

This module imports MaskGRPO's code, so launch.py imports it only after it has found upstream/.

B rollouts of a process's micro-batch, L prompt tokens, N image tokens, K updates.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from grpo.mask_grpo_trainer import MaskGRPOTrainer  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback

from htgrpo_ext.maskgrpo.checkpoints import COMPLETE, mark_complete
from htgrpo_ext.maskgrpo.extension import Answer, CycleRow, Extension, Policy
from htgrpo_ext.rewards.mix import JudgedBatch, pooled
from htgrpo_ext.rollouts.generate import mean_entropy
from htgrpo_ext.train.held_out import evaluate_held_out
from htgrpo_ext.train.records import (
    SHOWN,
    log_cycle,
    log_update,
    save_pictures,
    save_shown_rollout,
    write_cycle,
    write_update,
)
from htgrpo_ext.train.run import Run, warmup_factor


class Canonical:
    """Stands in for MaskGRPO's tokenizer, prompt builder and image decoder.

    A sequence is [L prompt ids, N codes, one more id] for every backbone; MaskGRPO only cuts the prompt and the codes
    out of it. `decode_code` returns the codes unchanged, because our rewards decode pixels themselves.
    """

    pad_token_id = bos_token_id = eos_token_id = 0

    def __init__(self, prompt_length: int):
        self.max_text_len, self.text_tokenizer = prompt_length, self

    def __len__(self) -> int:
        return 0  # codes are not shifted by a vocabulary

    def batch_decode(self, ids: Tensor, skip_special_tokens: bool = True) -> list[str]:
        return [""] * len(ids)  # MaskGRPO only logs these texts

    def decode_code(self, codes_BN: Tensor) -> Tensor:
        return codes_BN

    def save_pretrained(self, folder: str) -> None:
        """Nothing to save: the tokenizer is not trained, and the backbone's checkpoint has it."""


class AtTheStart(TrainerCallback):
    """Evaluates when training begins or goes on: a checkpoint is loaded by then."""

    def __init__(self, trainer: "LoopTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **_) -> None:
        self.trainer.evaluate_held_out(state.global_step // self.trainer.num_iterations)


class LoopTrainer(MaskGRPOTrainer):
    """MaskGRPO's trainer as both subclasses need it. What it computes is untouched."""

    def __init__(self, run: Run, **arguments):
        super().__init__(reward_funcs=[self.reward], **arguments)
        self.remove_callback(PrinterCallback)
        self.add_callback(AtTheStart(self))
        self.run = run

    epsilon = property(lambda self: self.args.epsilon)  # MaskGRPO reads a name that TRL 0.16 no longer has

    def reward(self, prompts, completions, **_) -> list[float]:
        """MaskGRPO's kind of reward function: the run's mixed reward of a micro-batch."""
        raise NotImplementedError

    def log_step(self, logs: dict) -> None:
        """Write the run's records of an optimizer step, and of the cycle that it ends."""
        raise NotImplementedError

    def log(self, logs: dict, start_time: float | None = None) -> None:
        if "grad_norm" in logs:
            self.log_step(logs)
        super().log(logs, start_time)

    def _get_train_sampler(self) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # its rows are in the order of the run already

    def create_optimizer(self):
        optimizer = super().create_optimizer()
        # DeepSpeed drops an empty group, and the scheduler would find one learning rate too many.
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        self.run.guard.protect(optimizer)
        return optimizer

    def _prepare_inputs(self, inputs: list[CycleRow]) -> dict:
        if self.state.global_step % self.num_iterations == 0:  # a cycle begins: nothing is lost by stopping now
            self.run.stop.check()
        return super()._prepare_inputs(inputs)

    def compute_loss(self, *arguments, **keywords) -> Tensor:
        loss = super().compute_loss(*arguments, **keywords)
        self.run.guard.watch(loss)
        return loss

    def end_cycle(self, cycles_done: int) -> None:
        """Evaluate if that is due, note that a checkpoint is due, stop if asked to. The cycle's records are written."""
        self.evaluate_held_out(cycles_done)
        self.control.should_save = self.control.should_save or self.run.save_due(cycles_done)
        self.run.check()

    def evaluate_held_out(self, cycles_done: int) -> None:
        """See train/held_out.py. MaskGRPO as published has no backbone that could paint."""

    def save_whole_cycles(self) -> None:
        """Write a checkpoint if the weights are those of whole cycles, and it is not there yet."""
        steps = self.state.global_step
        if steps and steps % self.num_iterations == 0 and not (self._checkpoint / COMPLETE).exists():
            self._save_checkpoint(self.model, None)

    @property
    def _checkpoint(self) -> Path:
        return Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"

    def _load_rng_state(self, checkpoint) -> None:
        # transformers 4.46.0 reads numpy's state by torch.load, which since torch 2.6 must be told that it may.
        numpy_state = [np.ndarray, np.dtype, type(np.dtype(np.uint32)), np.zeros(0).__reduce__()[0]]
        with torch.serialization.safe_globals(numpy_state):
            super()._load_rng_state(checkpoint)

    def _save_checkpoint(self, *arguments, **keywords) -> None:
        super()._save_checkpoint(*arguments, **keywords)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            mark_complete(self._checkpoint)
        self.run.saved_at = time.monotonic()


class ExtendedTrainer(LoopTrainer):
    """The trainer of every method that is ours to model: its extension answers the hooks."""

    def __init__(self, run: Run, extension: Extension, **arguments):
        super().__init__(run, **arguments)
        self.model.config.codebook_size = extension.backbone.codebook_size  # MaskGRPO reads it there
        self.ref_model = None  # the backbone has the reference policy
        self.extension = extension
        self._policy: Policy = "old"  # whose log-probabilities MaskGRPO means when it asks without a gradient
        # MaskGRPO reaches the reference policy by switching adapters off, also where full weights are trained.
        self._without_adapters = getattr(self.model, "disable_adapter", nullcontext)
        self.model.disable_adapter = self._as_reference

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        before, self._policy = self._policy, "reference"
        try:
            with self._without_adapters():
                yield
        finally:
            self._policy = before

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        warmup = self.run.settings.loop.warmup_updates
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: warmup_factor(step, warmup)
        )
        return self.lr_scheduler

    # --- a rollout batch: it is made first, and then handed to MaskGRPO piece by piece, as its code asks for them

    def _generate_and_score_completions(self, inputs: list[CycleRow]) -> dict:
        self.model.eval()  # dropout off: log-probabilities are compared
        self.extension.backbone.route_through(self.model)
        micro = self.extension.roll_out(inputs)
        batch = super()._generate_and_score_completions(inputs)
        if self.run.settings.reward.mixing != "sum" or not micro.judged.kept_B.all():
            batch["advantages"] = micro.judged.advantage_B  # MaskGRPO has no other mixtures and no lost groups
        return batch | {"micro_batch": micro}

    def prepare_inputs_uni(self, texts: Sequence[str], task: str, device, **_) -> tuple:
        prompts = self.extension.micro.prompts
        return prompts.ids_BL, prompts.attention_BL, None

    def t2i_generate_emerge(self, model, input_ids: Tensor, **_) -> Tensor:
        codes_BN = self.extension.micro.rollout.codes_BN
        return torch.cat([input_ids, codes_BN, torch.zeros_like(input_ids[:, :1])], dim=1)

    def reward(self, prompts, completions, **_) -> list[float]:
        return self.extension.micro.judged.reward_B.tolist()

    def _get_per_token_logps(self, model, input_ids, logits_to_keep, mask_seeds, cur_iter=0):
        """With gradient, the new policy's log-probabilities of update `cur_iter`; else those of all K updates."""
        if torch.is_grad_enabled():
            return self.extension.log_probs(cur_iter).new_BN[None], None
        targets_KBN = torch.stack([update.target_BN for update in self.extension.micro.updates])
        return Answer(self.extension, self._policy), targets_KBN

    # --- an optimizer step

    def evaluate_held_out(self, cycles_done: int) -> None:
        self.model.eval()
        self.extension.backbone.route_through(self.model)
        evaluate_held_out(self.run, self.extension.backbone, cycles_done)

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        with self.run.timed("update"):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        model.eval()
        self.extension.enter(inputs["micro_batch"], self.state.global_step)
        self.extension.backbone.route_through(model)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = loss * self.extension.kept_share()
        self.extension.record(loss, inputs["advantages"])
        self._learning_rate = self.optimizer.param_groups[0]["lr"]
        self.run.guard.nothing_to_train = not any(micro.judged.any_kept for micro in self.extension.cycle)
        # transformers 4.46.0 adds up over the micro-batches, where it should average.
        return loss / self.args.gradient_accumulation_steps

    def log_step(self, logs: dict) -> None:
        run, extension, step = self.run, self.extension, self.state.global_step - 1
        micros, G = extension.cycle, self.num_generations
        updates = [micro.updates[extension.update] for micro in micros]
        run.progress.update(extension.update, updates[0].stage)
        log_update(run, step, updates, extension.results, float(logs["grad_norm"]), self._learning_rate)
        extension.results = []
        if extension.update < run.settings.loop.updates_per_rollout - 1:
            return
        cycle, first = step // run.settings.loop.updates_per_rollout, micros[0]
        entropies = torch.tensor([mean_entropy(micro.rollout, micro.batch) for micro in micros])
        structure, refinement = entropies.mean(0).tolist()
        judged = replace(first.judged, metrics=pooled([micro.judged.metrics for micro in micros], G))
        log_cycle(run, cycle, judged, (structure, refinement), extension.forward.rows)
        tasks = [task for micro in micros for task in micro.tasks[::G]][:SHOWN]
        shown_BN = torch.cat([micro.rollout.codes_BN[::G] for micro in micros])[:SHOWN]
        save_pictures(run, cycle, tasks, lambda: extension.backbone.decode(shown_BN))
        run.seconds.clear()
        if cycle == run.settings.loop.cycles - 1:
            reward, shown = judged.reward_B[0].item(), (first.rollout, first.batch, first.updates)
            save_shown_rollout(run, extension.backbone, first.tasks[0], reward, *shown)
        self.end_cycle(cycle + 1)


class PublishedTrainer(LoopTrainer):
    """The trainer without an extension: MaskGRPO's own rollouts, masks and loss. We only log its numbers."""

    def __init__(self, run: Run, **arguments):
        super().__init__(run, **arguments)
        self._losses: list[Tensor] = []
        self._judged: list[JudgedBatch] = []

    def reward(self, prompts, completions, *, task, **_) -> list[float]:
        self._shown = task[:SHOWN], completions[:SHOWN].clone()
        self._judged.append(self.run.rewards.score(task, completions, lambda: completions))
        return self._judged[-1].reward_B.tolist()

    def compute_loss(self, *arguments, **keywords) -> Tensor:
        loss = super().compute_loss(*arguments, **keywords)
        self._losses.append(loss.detach().clone())
        return loss

    def log_step(self, logs: dict) -> None:
        step, kl = self.state.global_step - 1, self._metrics["train"]["kl"]
        cycle, k = divmod(step, self.num_iterations)
        self.run.progress.update(k, "global")
        values = {"loss": self.accelerator.gather(torch.stack(self._losses)).mean().item()}
        values |= {"kl": sum(kl) / max(len(kl), 1), "grad_norm": float(logs["grad_norm"])}
        write_update(self.run, step, "global", values | {"learning_rate": logs["learning_rate"]})
        self._losses = []
        if k == self.num_iterations - 1:
            write_cycle(self.run, cycle, pooled([judged.metrics for judged in self._judged], self.num_generations))
            save_pictures(self.run, cycle, self._shown[0], lambda: self._shown[1])
            self._judged = []
            self.end_cycle(cycle + 1)
