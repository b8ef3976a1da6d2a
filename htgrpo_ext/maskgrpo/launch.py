"""Start MaskGRPO's own loop from our configuration; its own entry script is configured by editing Python.

METHOD=maskgrpo MODEL=mmada is MaskGRPO as published: its model class, its rollouts, its faults. All other runs take
rollouts, updates and log-probabilities from the native loop, and the loop, reward plumbing, KL, clipping, optimizer
and checkpoints from MaskGRPO. trainer.py has both trainers.

P prompts, G rollouts per prompt, K updates.
"""

import functools
import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch.utils.data import Dataset

from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.backbones.llada.transformer import check_llada
from htgrpo_ext.backbones.mmada import Mmada
from htgrpo_ext.backbones.mmada.backbone import load_magvit
from htgrpo_ext.benchmarks.held_out import HeldOut
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.errors import Stopped, UserError
from htgrpo_ext.maskgrpo.checkpoints import complete_checkpoints, refuse_damaged
from htgrpo_ext.maskgrpo.extension import Extension
from htgrpo_ext.maskgrpo.patches.series import require_applied
from htgrpo_ext.methods.remasking import MaskGRPO
from htgrpo_ext.prompts.sources import PromptSources
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.checkpoint import save_weights
from htgrpo_ext.train.folder import is_first_process, newest_checkpoint, open_folder
from htgrpo_ext.train.guard import WeightsLost
from htgrpo_ext.train.run import Run, prepare_run

if TYPE_CHECKING:
    from htgrpo_ext.maskgrpo.trainer import LoopTrainer

ROOT = Path(__file__).parents[2]
TESTED = {"transformers": "4.46.0", "trl": "0.16.0", "peft": "0.14.0", "accelerate": "1.4.0"}
PUBLISHED_STEPS = 12  # a default inside its code, which nothing overrides for images


def require_upstream(root: Path = ROOT) -> None:
    """Make MaskGRPO importable. Raises UserError if it is absent or unpatched, or if other versions are installed."""
    for name, tested in TESTED.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "missing"
        if installed != tested:
            raise UserError(
                f"MaskGRPO's loop was tested with {name} {tested}, and {installed} is here: make setup-upstream"
            )
    require_applied(root)
    if str(root / "upstream") not in sys.path:
        sys.path.insert(0, str(root / "upstream"))


class CycleRows(Dataset):
    """The rows that MaskGRPO's loop reads, in the native loop's order: for each optimizer step all P*G rows.

    They are the same in all K steps of a cycle; the loop uses them in the first step only.
    """

    def __init__(self, settings: RunSettings, prompts: PromptSources):
        self.settings = settings
        self.rows = settings.rollout.prompts_per_cycle * settings.rollout.rollouts_per_prompt
        self.cycle_prompts = functools.lru_cache(maxsize=2)(prompts.cycle)

    def __len__(self) -> int:
        return self.settings.loop.cycles * self.settings.loop.updates_per_rollout * self.rows

    def __getitem__(self, index: int) -> dict:
        cycle = index // (self.settings.loop.updates_per_rollout * self.rows)
        place = index % self.rows // self.settings.rollout.rollouts_per_prompt
        task = self.cycle_prompts(cycle)[place]
        return {"prompt": task["prompt"], "task": task, "cycle": cycle, "place": place}


def trainer_config(settings: RunSettings, processes: int) -> dict:
    """The arguments of MaskGRPO's configuration for a run: our settings, and what switches its own parts off."""
    rollout, loop = settings.rollout, settings.loop
    images = rollout.prompts_per_cycle * rollout.rollouts_per_prompt
    return dict(
        output_dir=str(settings.folder / "checkpoints"),
        per_device_train_batch_size=images // (processes * loop.micro_batches),
        generation_batch_size=images,  # one call for all rows of a micro-batch; `generate` uses loop.batch_size
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
        bf16=getattr(settings.model, "dtype", None) == "bfloat16",
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
        use_cpu=not torch.cuda.is_available() and "ACCELERATE_TORCH_DEVICE" not in os.environ,
        ddp_find_unused_parameters=False,
    )


def published_config(settings: RunSettings) -> dict:
    """The arguments that differ for MaskGRPO as published: its own guidance and warm-up, and rollouts one by one."""
    return dict(
        cfg_scale=settings.rollout.guidance,
        generation_batch_size=1,
        min_mask_rate=cast(MaskGRPO, settings.method).min_mask_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.loop.warmup_updates,
    )


def is_published(settings: RunSettings) -> bool:
    """Whether the run is MaskGRPO as published. Its code knows MMaDA's ids only."""
    return isinstance(settings.method, MaskGRPO) and isinstance(settings.model, Mmada)


def published_problems(settings: RunSettings) -> list[str]:
    """What the settings ask for and MaskGRPO as published cannot do, one line each."""
    rollout, found = settings.rollout, []
    if (rollout.sampler, rollout.steps) != ("emerge", PUBLISHED_STEPS):
        found.append(
            f"MaskGRPO as published always samples with emerge in {PUBLISHED_STEPS} steps; set rollout.sampler and "
            "rollout.steps so, or use METHOD=maskgrpo-fixed"
        )
    found += [
        f"MaskGRPO as published has rollouts of its own; leave out rollout.{key}, or use METHOD=maskgrpo-fixed"
        for key in ("guidance_interval", "reuse")
        if getattr(rollout, key) is not None
    ]
    if settings.loop.compile:
        found.append("MaskGRPO as published is not compiled (loop.compile)")
    if settings.loop.updates_per_rollout == 1:
        found.append("MaskGRPO as published cannot run with one update (loop.updates_per_rollout)")
    if settings.model.tuning != "lora":
        found.append("MaskGRPO as published trains adapters only (model.tuning)")
    if settings.benchmark:
        found.append("MaskGRPO as published cannot be evaluated: its model class has no backbone of ours (eval)")
    return found


def without_held_out(settings: RunSettings) -> RunSettings:
    """The settings of what can be run: MaskGRPO as published paints no held-out prompts, and says so."""
    if not is_published(settings) or not isinstance(settings.eval, HeldOut):
        return settings
    if is_first_process():
        print("MaskGRPO as published is not evaluated while it trains: its model class has no backbone of ours (eval)")
    return settings.model_copy(update={"eval": None})


def published_parts(settings: RunSettings, device: torch.device) -> dict:
    """What MaskGRPO's entry script builds for the trainer, in the same order, because it draws from the global RNG."""
    from models import MMadaModelLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from peft.tuners.lora import LoraConfig
    from training.prompting_utils import UniversalPrompting  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer, set_seed

    section = cast(Mmada, settings.model)
    check_llada(section.checkpoint)  # MaskGRPO's class would draw the weights that are missing
    set_seed(settings.seed)
    model = MMadaModelLM.from_pretrained(section.checkpoint, torch_dtype=getattr(torch, section.dtype)).to(device)
    vq_model = load_magvit(section.vq_checkpoint).to(device)
    tokenizer = AutoTokenizer.from_pretrained(section.checkpoint, padding_side="left")
    prompting = UniversalPrompting(tokenizer, max_text_len=section.prompt_length - 1, use_reserved_token=True)
    model.config.use_cache = False
    return dict(
        model=model,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **(section.lora_keywords() or {})),
        processing_class=prompting.text_tokenizer,
        uni_processing_class=prompting,
        vq_model=vq_model,
    )


@dataclass
class MaskGRPOLoop:
    """See `TrainingLoop`."""

    run: Run
    backbone: Backbone | None
    trainer: "LoopTrainer"
    checkpoint: Path | None = None  # to continue from

    def train(self) -> None:
        try:
            with self.run.stop.postponed():
                self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        except WeightsLost:
            raise
        except (UserError, Stopped):  # raised before a cycle's first update, or after its last
            self.trainer.save_whole_cycles()
            raise

    def checkpoints(self) -> list[tuple[int, Path]]:
        return checkpoints_of(self.run.settings)

    def save_model(self, folder: Path) -> None:
        if self.backbone:
            self.backbone.save(folder)
        else:
            save_weights(self.trainer.accelerator.unwrap_model(self.trainer.model), folder)


def make_loop(settings: RunSettings) -> MaskGRPOLoop:
    """MaskGRPO's loop for a run, as published or with our extension. Writes nothing.

    Raises UserError for a missing or unpatched upstream, or for impossible settings.
    """
    require_upstream()
    from grpo.grpo_config import MaskGRPOConfig  # pyright: ignore[reportMissingImports]

    from htgrpo_ext.maskgrpo.trainer import Canonical, ExtendedTrainer, PublishedTrainer

    processes, published = int(os.environ.get("WORLD_SIZE", 1)), is_published(settings)
    problems = settings.problems(processes) + (published_problems(settings) if published else [])
    if problems:
        raise UserError("\n".join(problems))
    config = MaskGRPOConfig(**trainer_config(settings, processes) | (published_config(settings) if published else {}))
    config.epsilon_high = None  # TRL 0.16 asks for it; MaskGRPO's configuration is older
    run = prepare_run(settings)  # before anything is loaded, which takes minutes with real weights
    shared = dict(args=config, train_dataset=CycleRows(settings, run.prompts))
    if published:
        return MaskGRPOLoop(run, None, PublishedTrainer(run, **shared, **published_parts(settings, config.device)))
    backbone = load_backbone(settings.model, config.device, settings.seed)
    backbone.model.eval()
    if settings.loop.compile:
        backbone.compile_blocks(settings.loop.compile)
    forward = SharedForward(backbone.image_logits, backbone.mask_id, settings.loop.batch_size)
    shim = Canonical(backbone.encode_prompts([""]).ids_BL.shape[1])
    parts = dict(model=backbone.model, processing_class=shim, uni_processing_class=shim, vq_model=shim)
    trainer = ExtendedTrainer(run, Extension(run, backbone, forward), **shared, **parts)
    return MaskGRPOLoop(run, backbone, trainer)


def start(settings: RunSettings, resume: bool = False) -> MaskGRPOLoop:
    """The loop, with its model loaded and its folder open; it resumes from the last checkpoint if asked.

    Raises UserError as `make_loop` does, and for a folder that holds a run (without `resume`).
    """
    if why := settings.model.not_in_maskgrpo:
        raise UserError(f"{settings.model.name} cannot be trained by LOOP=upstream: {why}; use LOOP=native")
    require_upstream()
    settings = without_held_out(settings)
    found = checkpoints_of(settings)
    checkpoint = newest_checkpoint(settings, found, resume)
    if checkpoint:
        refuse_damaged(checkpoint)
    loop = make_loop(settings)
    loop.checkpoint = checkpoint
    open_folder(loop.run, found[-1][0] if checkpoint else 0)
    return loop


def checkpoints_of(settings: RunSettings) -> list[tuple[int, Path]]:
    """Cycles done and folder of each of a run's complete checkpoints, oldest first."""
    return complete_checkpoints(settings.folder / "checkpoints", settings.loop.updates_per_rollout)
