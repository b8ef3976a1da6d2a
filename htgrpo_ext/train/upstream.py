"""MaskGRPO's own loop under our configuration: what its entry script edits into Python comes from YAML here.

`OurTrainer` is its trainer with the parts that differ between methods taken from the reference loop (through
`Extension`); its loop, reward plumbing, KL, clipping, optimizer and checkpoints are inherited. METHOD=maskgrpo on a
real backbone is MaskGRPO as published instead, see train/published.py.

B rollouts of a process's micro-batch, L prompt tokens, N image tokens, P prompts, G rollouts per prompt, K updates.
"""

import functools
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler

from htgrpo_ext.backbones.micro import MicroBackbone
from htgrpo_ext.config import load_settings, save_settings
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.objective import group_advantage
from htgrpo_ext.errors import UserError
from htgrpo_ext.eval.evaluate import evaluate
from htgrpo_ext.patches.checkout import Checkout
from htgrpo_ext.patches.series import Series, chain
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train import reference
from htgrpo_ext.train.extension import Extension
from htgrpo_ext.train.log import MetricsLog
from htgrpo_ext.train.progress import TrainingProgress
from htgrpo_ext.train.reference import Run, refuse_other_settings
from htgrpo_ext.train.rollout import mean_entropy

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
            raise UserError(f"MaskGRPO's loop was tested with {name} {tested}, {installed} is there: make setup-upstream")
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
            lambda cycle: reference.cycle_prompts(self.pool, self.settings, cycle)
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
            super().__init__(**arguments)
            self.remove_callback(PrinterCallback)
            self.ref_model = None  # the backbone has the reference policy
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
            """New log-probabilities with gradient; without, first the old policy's, then the reference's."""
            if torch.is_grad_enabled():
                self._new_BN = self.extension.score().new(cur_iter)
                return self._new_BN[None], None
            scores = self.extension.score()
            targets_KBN = torch.stack([update.target_BN for update in self.extension.micro.updates])
            adapters_off = getattr(self.model, "adapters_off", False)
            return (scores.reference if adapters_off else scores.old), targets_KBN

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
