"""MaskGRPO's trainer, twice: with the native loop's parts in it, and as published.

This module imports MaskGRPO's code: launch.py imports it once upstream/ is known to be there.

B rollouts of a process's micro-batch, L prompt tokens, N image tokens, K updates.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from grpo.mask_grpo_trainer import MaskGRPOTrainer
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback

from htgrpo_ext.maskgrpo.extension import Answer, Extension
from htgrpo_ext.maskgrpo.launch import COMPLETE
from htgrpo_ext.rewards.mix import JudgedBatch, pooled
from htgrpo_ext.rollouts.generate import mean_entropy
from htgrpo_ext.train.run import SHOWN, Run, log_cycle, log_update, save_pictures, save_shown_rollout, warmup_factor


class Canonical:
    """Stands in for MaskGRPO's tokenizer, prompt builder and image decoder.

    A sequence is [L prompt ids, N codes, one more id] for every backbone: MaskGRPO only cuts the prompt and the codes
    out of it. `decode_code` hands the codes on, because our rewards ask for pixels themselves where they need any.
    """

    pad_token_id = bos_token_id = eos_token_id = 0

    def __init__(self, prompt_length: int):
        self.max_text_len, self.text_tokenizer = prompt_length, self

    def __len__(self) -> int:
        return 0  # codes are not shifted by a vocabulary

    def batch_decode(self, ids: Tensor, skip_special_tokens: bool = True) -> list[str]:
        return [""] * len(ids)  # only ever logged, and by an option that fails for images

    def decode_code(self, codes_BN: Tensor) -> Tensor:
        return codes_BN

    def save_pretrained(self, folder: str) -> None:
        """The backbone's tokenizer is not trained; its checkpoint has it."""


class LoopTrainer(MaskGRPOTrainer):
    """MaskGRPO's trainer as both ways of using it need it; what it computes is untouched."""

    def __init__(self, run: Run, **arguments):
        super().__init__(**arguments)
        self.remove_callback(PrinterCallback)
        self.run = run

    epsilon = property(lambda self: self.args.epsilon)  # MaskGRPO reads a name that TRL 0.16 no longer has

    def _get_train_sampler(self) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # its rows are in the order of the run already

    def create_optimizer(self):
        optimizer = super().create_optimizer()
        # DeepSpeed drops an empty group, and the scheduler then finds one learning rate too many.
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def _load_rng_state(self, checkpoint) -> None:
        # transformers 4.46.0 reads numpy's state by torch.load, which since torch 2.6 has to be told that it may.
        numpy_state = [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
        with torch.serialization.safe_globals(numpy_state):
            super()._load_rng_state(checkpoint)

    def _save_checkpoint(self, *arguments, **keywords) -> None:
        super()._save_checkpoint(*arguments, **keywords)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / COMPLETE).touch()

    def log(self, logs: dict, start_time: float | None = None) -> None:
        if "grad_norm" in logs:
            self.log_step(logs)
        super().log(logs, start_time)

    def log_step(self, logs: dict) -> None:
        """The run's records of an optimizer step, and of the cycle that it ends."""
        raise NotImplementedError


class ExtendedTrainer(LoopTrainer):
    """The trainer of every method that is ours to model: the hooks' answers come from its extension."""

    def __init__(self, run: Run, extension: Extension, **arguments):
        super().__init__(run, reward_funcs=[self.reward], **arguments)
        self.model.config.codebook_size = extension.backbone.codebook_size  # MaskGRPO reads it; Lumina's lacks it
        self.ref_model = None  # the backbone has the reference policy
        self.extension = extension
        self._policy_asked = "old"
        # MaskGRPO asks for the reference policy by switching adapters off, also where full weights are trained.
        self._without_adapters = getattr(self.model, "disable_adapter", nullcontext)
        self.model.disable_adapter = self._reference_is_asked

    @contextmanager
    def _reference_is_asked(self) -> Iterator[None]:
        before, self._policy_asked = self._policy_asked, "reference"
        try:
            with self._without_adapters():
                yield
        finally:
            self._policy_asked = before

    # --- what the native loop does another way than MaskGRPO

    def reward(self, prompts, completions, step, run_name, **_) -> list[float]:
        """MaskGRPO's kind of reward function: the run's mixed reward of the micro-batch in hand."""
        self._judged = self.extension.judge(self._rolled)
        return self._judged.reward_B.tolist()

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        warmup = self.run.settings.loop.warmup_updates
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: warmup_factor(step, warmup)
        )
        return self.lr_scheduler

    # --- a rollout batch

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        self.model.eval()  # dropout off: log-probabilities are compared
        self._rows, self._scores = inputs, None
        self.extension.backbone.route_through(self.model)
        batch = super()._generate_and_score_completions(inputs)
        judged = self._judged
        if self.run.settings.reward.mixing != "sum" or not judged.kept_B.all():
            batch["advantages"] = judged.advantage_B  # MaskGRPO knows neither other mixtures nor lost groups
        # MaskGRPO asks for no log-probabilities here when there is one update and no KL term.
        scores = self._scores or self.extension.score(self._rolled)
        return batch | {"micro_batch": self.extension.take(self._rolled, scores, judged)}

    def prepare_inputs_uni(self, texts: Sequence[str], task: str, device, **_) -> tuple:
        self._prompts = self.extension.backbone.encode_prompts(texts)
        return self._prompts.ids_BL, self._prompts.attention_BL, None

    def t2i_generate_emerge(self, model, input_ids: Tensor, **_) -> Tensor:
        self._rolled = self.extension.roll_out(self._rows, self._prompts)
        return torch.cat([input_ids, self._rolled.rollout.codes_BN, torch.zeros_like(input_ids[:, :1])], dim=1)

    def _get_per_token_logps(self, model, input_ids, logits_to_keep, mask_seeds, cur_iter=0):
        """With gradient the new policy's log-probabilities of update `cur_iter`; else those of all K updates."""
        if torch.is_grad_enabled():
            return self.extension.log_probs(cur_iter).new_BN[None], None
        self._scores = self._scores or self.extension.score(self._rolled)
        targets_KBN = torch.stack([update.target_BN for update in self._rolled.updates])
        return Answer(self.extension, self._policy_asked), targets_KBN

    # --- an optimizer step

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        seconds, start = self.run.seconds, time.perf_counter()
        others = sum(seconds.values()) - seconds.get("update", 0.0)
        loss = super().training_step(model, inputs, num_items_in_batch)
        others = sum(seconds.values()) - seconds.get("update", 0.0) - others
        seconds["update"] = seconds.get("update", 0.0) + time.perf_counter() - start - others
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        model.eval()
        self.extension.enter(inputs["micro_batch"], self.state.global_step)
        self.extension.backbone.route_through(model)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = loss * self.extension.kept_share()
        self.extension.record(loss, inputs["advantages"])
        self._learning_rate = self.optimizer.param_groups[0]["lr"]
        # transformers 4.46.0 adds up what it should average over the micro-batches.
        return loss / self.args.gradient_accumulation_steps

    def log_step(self, logs: dict) -> None:
        run, extension, step = self.run, self.extension, self.state.global_step - 1
        cycle, G = extension.cycle, self.num_generations
        updates = [micro.updates[extension.update] for micro in cycle]
        run.progress.update(extension.update, updates[0].stage)
        log_update(run, step, updates, extension.results, float(logs["grad_norm"]), self._learning_rate)
        extension.results = []
        if extension.update < run.settings.loop.updates_per_rollout - 1:
            return
        rolled = [micro.rolled for micro in cycle]
        structure, refinement = torch.tensor([mean_entropy(r.rollout, r.batch) for r in rolled]).mean(0).tolist()
        number = step // run.settings.loop.updates_per_rollout
        judged = replace(cycle[0].judged, metrics=pooled([micro.judged.metrics for micro in cycle], G))
        log_cycle(run, number, judged, (structure, refinement), extension.forward.rows)
        tasks = [task for r in rolled for task in r.tasks[::G]][:SHOWN]
        shown_BN = torch.cat([r.rollout.codes_BN[::G] for r in rolled])[:SHOWN]
        save_pictures(run, number, tasks, lambda: extension.backbone.decode(shown_BN))
        run.seconds.clear()
        if number == run.settings.loop.cycles - 1:
            first, reward = rolled[0], judged.reward_B[0].item()
            save_shown_rollout(
                run, extension.backbone, first.tasks[0], reward, first.rollout, first.batch, first.updates
            )


class PublishedTrainer(LoopTrainer):
    """The trainer with no extension: MaskGRPO's own rollouts, masks and loss, whose numbers are logged as they come."""

    def __init__(self, run: Run, **arguments):
        super().__init__(run, reward_funcs=[self.reward], **arguments)
        self._losses: list[Tensor] = []
        self._judged: list[JudgedBatch] = []

    def reward(self, prompts, completions, step, run_name, task, **_) -> list[float]:
        self._shown = task[:SHOWN], completions[:SHOWN].clone()
        self._judged.append(self.run.rewards.score(task, completions, lambda: completions))
        return self._judged[-1].reward_B.tolist()

    def compute_loss(self, *arguments, **keywords) -> Tensor:
        loss = super().compute_loss(*arguments, **keywords)
        self._losses.append(loss.detach().clone())
        return loss

    def log_step(self, logs: dict) -> None:
        cycle, k = divmod(self.state.global_step - 1, self.num_iterations)
        self.run.progress.update(k, "global")
        record = {
            "kind": "update",
            "cycle": cycle,
            "update": k,
            "step": self.state.global_step,
            "stage": "global",
            "loss": self.accelerator.gather(torch.stack(self._losses)).mean().item(),
            "kl": sum(self._metrics["train"]["kl"]) / max(len(self._metrics["train"]["kl"]), 1),
            "grad_norm": float(logs["grad_norm"]),
            "learning_rate": logs["learning_rate"],
        }
        self.run.log.write(record, self.state.global_step)
        self._losses = []
        if k == self.num_iterations - 1:
            metrics = pooled([judged.metrics for judged in self._judged], self.num_generations)
            record = {"kind": "cycle", "cycle": cycle, **metrics, "seconds": {}}
            self.run.log.write(record, self.state.global_step)
            self.run.progress.cycle(record)
            save_pictures(self.run, cycle, self._shown[0], lambda: self._shown[1])
            self._judged = []
