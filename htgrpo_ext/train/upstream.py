"""MaskGRPO's own loop under our configuration: what its entry script edits into Python comes from YAML here.

`OurTrainer` is its trainer with the parts that differ between methods taken from the reference loop (through
`Extension`); its loop, reward plumbing, KL, clipping, optimizer and checkpoints are inherited. METHOD=maskgrpo on a
real backbone is MaskGRPO as published instead, see train/published.py.

B rollouts of a process's micro-batch, L prompt tokens, N image tokens, P prompts, G rollouts per prompt, K updates.
"""

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler

from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.objective import group_advantage
from htgrpo_ext.errors import UserError
from htgrpo_ext.patches.checkout import Checkout
from htgrpo_ext.patches.series import Series, chain
from htgrpo_ext.rewards.micro import score
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.extension import Extension
from htgrpo_ext.train.log import MetricsLog
from htgrpo_ext.train.progress import TrainingProgress
from htgrpo_ext.train.rollout import mean_entropy
from htgrpo_ext.train.run import (
    Run,
    cycle_prompts,
    log_cycle,
    log_update,
    newest_checkpoint,
    open_folder,
    prompt_pool,
    save_shown_rollout,
    train_to_report,
)

ROOT = Path(__file__).parents[2]
TESTED = {"transformers": "4.46.0", "trl": "0.16.0", "peft": "0.14.0", "accelerate": "1.4.0"}
COMPLETE = "complete"  # the file that says a checkpoint was written to its end


def require_upstream(root: Path = ROOT) -> None:
    """Make MaskGRPO importable. Raises UserError when it is absent or unpatched, or other versions are installed."""
    for name, tested in TESTED.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "missing"
        if installed != tested:
            raise UserError(
                f"MaskGRPO's loop was tested with {name} {tested}, {installed} is there: make setup-upstream"
            )
    checkout, series = Checkout(root / "upstream"), Series.load(root / "patches")
    if checkout.commit_of(series.base) is None or checkout.head != chain(checkout, series)[-1]:
        raise UserError(f"{root / 'upstream'}/ is not the pinned MaskGRPO with its patches: make apply-patches")
    if str(root / "upstream") not in sys.path:
        sys.path.insert(0, str(root / "upstream"))


class CycleRows(Dataset):
    """The rows MaskGRPO's loop asks for, in the reference loop's order: for each optimizer step all B = P*G rows.

    They are the same in all K steps of a cycle, because the loop looks at them in the first only.
    """

    def __init__(self, settings: RunSettings, pool: dict):
        self.settings, self.pool = settings, pool
        self.rows = settings.rollout.prompts_per_cycle * settings.rollout.rollouts_per_prompt
        self.cycle_prompts = functools.lru_cache(maxsize=2)(
            lambda cycle: cycle_prompts(self.pool, self.settings, cycle)
        )

    def __len__(self) -> int:
        return self.settings.loop.cycles * self.settings.loop.updates_per_rollout * self.rows

    def __getitem__(self, index: int) -> dict:
        cycle = index // (self.settings.loop.updates_per_rollout * self.rows)
        place = index % self.rows // self.settings.rollout.rollouts_per_prompt
        task = self.cycle_prompts(cycle)[place]
        return {"prompt": task["prompt"], "task": task, "cycle": cycle, "place": place}


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


def trainer_config(settings: RunSettings, processes: int) -> dict:
    """MaskGRPO's configuration for a run: what it and `RunSettings` both know, and what keeps it out of our way."""
    rollout, loop = settings.rollout, settings.loop
    images = rollout.prompts_per_cycle * rollout.rollouts_per_prompt
    return dict(
        output_dir=str(settings.folder / "checkpoints"),
        per_device_train_batch_size=images // (processes * loop.micro_batches),
        generation_batch_size=images,  # one call for all rows of a micro-batch: `generate` cuts it by loop.batch_size
        gradient_accumulation_steps=loop.micro_batches,
        num_generations=rollout.rollouts_per_prompt,
        num_iterations=loop.updates_per_rollout,
        max_steps=loop.cycles * loop.updates_per_rollout,
        learning_rate=loop.learning_rate,
        adam_beta1=loop.adam_betas[0],
        adam_beta2=loop.adam_betas[1],
        weight_decay=loop.weight_decay,
        max_grad_norm=loop.max_grad_norm,
        beta=loop.kl_coefficient,
        epsilon=loop.clip_epsilon,
        seed=settings.seed,
        save_steps=min(loop.save_steps, loop.cycles) * loop.updates_per_rollout,
        save_total_limit=2,
        task="t2i",
        version="uni",
        mean_method="grpo",
        cfg_scale=0.0,  # guidance is the sampler's, from rollout.guidance
        max_prompt_length=None,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )


@functools.cache
def our_trainer() -> type:
    """The trainer's class; a function, because its base can be imported only once upstream/ is there."""
    from grpo.mask_grpo_trainer import MaskGRPOTrainer
    from transformers import PrinterCallback

    class OurTrainer(MaskGRPOTrainer):
        extension: Extension

        def __init__(self, run: Run, **arguments):
            super().__init__(reward_funcs=[reward_function(self)], **arguments)
            self.remove_callback(PrinterCallback)
            self.ref_model = None  # the backbone has the reference policy
            if not hasattr(self.model, "disable_adapter"):  # asked for also where full weights are trained
                self.model.disable_adapter = nullcontext
            run.accelerator = self.accelerator
            self.run, self.extension = run, Extension(run)

        epsilon = property(lambda self: self.args.epsilon)  # MaskGRPO reads a name that TRL 0.16 no longer has

        # --- the outer loop: the reference loop's prompts, optimizer groups and learning rate

        def _get_train_sampler(self) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

        def create_optimizer(self):
            optimizer = super().create_optimizer()
            # DeepSpeed drops an empty group, and the scheduler then finds one learning rate too many.
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
            return optimizer

        def create_scheduler(self, num_training_steps: int, optimizer=None):
            warmup = self.run.settings.loop.warmup_updates
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1))
            )
            return self.lr_scheduler

        # --- a rollout batch

        def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
            self.model.eval()  # dropout off: log-probabilities are compared
            self._rows = inputs
            # MaskGRPO asks for the old log-probabilities, unless there is but one update, then for the reference's.
            self._asked = ["old", "reference"] if self.num_iterations > 1 else ["reference"]
            self.run.backbone.route_through(self.model)
            batch = super()._generate_and_score_completions(inputs)
            return batch | {"micro_batch": self.extension.micro}

        def prepare_inputs_uni(self, texts: Sequence[str], task: str, device, **_) -> tuple:
            self._prompts = self.run.backbone.encode_prompts(texts)
            return self._prompts.ids_BL, self._prompts.attention_BL, None

        def t2i_generate_emerge(self, model, input_ids: Tensor, **_) -> Tensor:
            codes_BN = self.extension.roll_out(self._rows, self._prompts).codes_BN
            return torch.cat([input_ids, codes_BN, torch.zeros_like(input_ids[:, :1])], dim=1)

        def _get_per_token_logps(self, model, input_ids, logits_to_keep, mask_seeds, cur_iter=0):
            """With gradient the new policy's log-probabilities of update `cur_iter`; else those of all K updates."""
            if torch.is_grad_enabled():
                self._new_BN = self.extension.score().new(cur_iter)
                return self._new_BN[None], None
            scores = self.extension.score()
            targets_KBN = torch.stack([update.target_BN for update in self.extension.micro.updates])
            return getattr(scores, self._asked.pop(0)), targets_KBN

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
            self.run.backbone.route_through(model)
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            self.extension.record(loss, inputs["advantages"], self._new_BN)
            self._learning_rate = self.optimizer.param_groups[0]["lr"]
            # transformers 4.46.0 adds up what it should average over the micro-batches.
            return loss / self.args.gradient_accumulation_steps

        def log(self, logs: dict, start_time: float | None = None) -> None:
            if "grad_norm" in logs:
                log_step(self, float(logs["grad_norm"]))
            super().log(logs, start_time)

        def _save_checkpoint(self, *arguments, **keywords) -> None:
            super()._save_checkpoint(*arguments, **keywords)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / COMPLETE).touch()

    return OurTrainer


def log_step(trainer, norm: float) -> None:
    """The reference loop's records of an optimizer step, and of the cycle that it ends."""
    run, extension, step = trainer.run, trainer.extension, trainer.state.global_step - 1
    updates = [micro.updates[extension.update] for micro in extension.cycle]
    run.progress.update(extension.update, updates[0].stage)
    log_update(run, step, updates, extension.results, norm, trainer._learning_rate)
    extension.results = []
    if extension.update < run.settings.loop.updates_per_rollout - 1:
        return
    cycle = extension.cycle
    rewards = {name: torch.cat([micro.rewards[name] for micro in cycle]) for name in cycle[0].rewards}
    reward_B = torch.cat([micro.reward_B for micro in cycle])
    flat_P = group_advantage(reward_B, run.settings.rollout.rollouts_per_prompt)[1].to(trainer.accelerator.device)
    entropies = torch.tensor([mean_entropy(micro.rollout, micro.batch) for micro in cycle]).mean(0).tolist()
    number = step // run.settings.loop.updates_per_rollout
    log_cycle(run, number, rewards, reward_B, flat_P, tuple(entropies))
    run.seconds.clear()
    if number == run.settings.loop.cycles - 1 and trainer.accelerator.is_main_process:
        first = cycle[0]
        rank_BN = first.batch.rank_BN
        save_shown_rollout(
            run.settings.folder, first.tasks[0], first.reward_B[0].item(), first.rollout, rank_BN, first.updates
        )


def reward_function(trainer) -> Callable[..., list[float]]:
    """MaskGRPO's kind of reward function: the run's weighted reward of the micro-batch in hand."""

    def reward(prompts, completions, step, run_name, **_) -> list[float]:
        micro, settings = trainer.extension.micro, trainer.run.settings
        with trainer.run.timed("reward"):
            micro.rewards = score(micro.tasks, micro.rollout.codes_BN, [reward.name for reward in settings.rewards])
            micro.reward_B = sum(reward.weight * micro.rewards[reward.name] for reward in settings.rewards)
        return micro.reward_B.tolist()

    return reward


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(whole, key=steps_done)


def steps_done(checkpoint: Path) -> int:
    """Optimizer steps behind a checkpoint, from its name."""
    return int(checkpoint.name.rpartition("-")[2])


def train(settings: RunSettings, resume: bool = False) -> Path:
    """Train in MaskGRPO's loop; evaluate and report as the reference loop does. Returns the run's folder.

    Raises UserError for a missing or unpatched upstream, an impossible batch, or a folder that holds a run.
    """
    require_upstream()
    from grpo.grpo_config import MaskGRPOConfig

    processes = int(os.environ.get("WORLD_SIZE", 1))
    if problems := settings.problems(processes):
        raise UserError("\n".join(problems))
    checkpoint = newest_checkpoint(settings, complete_checkpoints(settings.folder / "checkpoints"), resume)
    config = MaskGRPOConfig(**trainer_config(settings, processes))
    config.epsilon_high = None  # TRL 0.16 asks for it; MaskGRPO's configuration is older
    backbone = load_backbone(settings.model, config.device, settings.seed)
    backbone.model.eval()
    shown = config.process_index == 0
    run = Run(
        settings,
        accelerator=None,
        backbone=backbone,
        forward=SharedForward(backbone.image_logits, backbone.mask_id, settings.loop.batch_size),
        optimizer=None,
        log=MetricsLog(settings, enabled=shown),
        progress=TrainingProgress(settings, enabled=shown),
        pool=prompt_pool(settings),
    )
    shim = Canonical(backbone.encode_prompts([""]).ids_BL.shape[1])
    trainer = our_trainer()(
        run,
        args=config,
        model=backbone.model,
        train_dataset=CycleRows(settings, run.pool),
        processing_class=shim,
        uni_processing_class=shim,
        vq_model=shim,
    )
    open_folder(run, steps_done(checkpoint) // settings.loop.updates_per_rollout if checkpoint else 0)
    return train_to_report(run, lambda: trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint)))
