"""What both loops share around their cycles: the run's state, its prompts, records and folder."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.config import load_settings, save_settings
from htgrpo_ext.core.objective import Objective
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.views import RolloutBatch, Update
from htgrpo_ext.errors import UserError
from htgrpo_ext.files import write_atomically
from htgrpo_ext.pixels import levels_image, to_image, to_levels
from htgrpo_ext.prompts.sources import PromptSources
from htgrpo_ext.rewards.mix import JudgedBatch, Rewards
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.log import MetricsLog, flatten
from htgrpo_ext.train.progress import TrainingProgress

SHOWN = 4  # pictures of a cycle that are kept, each of another prompt
# Between a run and its continuation. Of rewards: where they run and how patiently they are asked, not what they are.
MAY_CHANGE = {"name", "label", "out", "loop.cycles", "loop.save_steps"} | {
    f"reward.{key}" for key in ("on_failure", "max_failed_share", "retries", "deadline", "overlap")
}
TERM_MAY_CHANGE = {"url", "protocol", "device", "batch_size", "timeout"}


@dataclass
class Run:
    """What a training run carries from cycle to cycle, in whichever loop."""

    settings: RunSettings
    processes: PartialState
    log: MetricsLog
    progress: TrainingProgress
    prompts: PromptSources
    rewards: Rewards
    seconds: dict[str, float] = field(default_factory=dict)  # of this cycle, by part

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


class TrainingLoop(Protocol):
    """A loop that is ready to train: its model is loaded, its folder open."""

    run: Run
    backbone: Backbone | None  # None: MaskGRPO as published, which has its own model class

    def train(self) -> None:
        """Train from where the run stands to its last cycle."""
        ...

    def save_model(self, folder: Path) -> None:
        """Write what was trained: the whole model, or its adapters."""
        ...


def prepare_run(settings: RunSettings) -> Run:
    """Check the batch against the number of processes, then prompts and reward servers, before any model is loaded.

    Raises UserError for an impossible batch, an unreadable source of prompts, or a reward that cannot be had.
    """
    processes = PartialState()
    if problems := settings.problems(processes.num_processes):
        raise UserError("\n".join(problems))
    prompts = prompt_sources(settings)
    rewards = Rewards(settings.reward, processes, settings.rollout.rollouts_per_prompt)
    rewards.start()
    shown = processes.is_main_process
    return Run(settings, processes, MetricsLog(settings, shown), TrainingProgress(settings, shown), prompts, rewards)


def prompt_sources(settings: RunSettings) -> PromptSources:
    """The prompts that a run trains on. Raises UserError when a source cannot be read."""
    return PromptSources(settings.prompts, settings.seed, settings.rollout.prompts_per_cycle, settings.held_out)


def warmup_factor(step: int, warmup: int) -> float:
    """Of the learning rate, at optimizer step `step` from 0: a linear warm-up over `warmup` steps, then 1."""
    return min(1.0, (step + 1) / (warmup + 1))


def log_update(
    run: Run, step: int, updates: Sequence[Update], results: Sequence[Objective], norm: float, learning_rate: float
) -> None:
    """One line of metrics, averaged over micro-batches and processes; the largest ratio is the largest of all.

    updates  what step `step` trained, in parts that together are all of this process's rollouts
    """
    cycle, k = divmod(step, run.settings.loop.updates_per_rollout)
    support = torch.cat([(update.target_BN > 0).float().sum(-1) for update in updates])
    stacked = torch.stack([torch.stack([value.detach() for value in result]) for result in results])
    gathered = gather(stacked.unsqueeze(0)).flatten(0, 1)
    means = dict(zip(Objective._fields, gathered.mean(0).tolist(), strict=True))
    record = {
        "kind": "update",
        "cycle": cycle,
        "update": k,
        "step": step + 1,
        "stage": updates[0].stage,
        "support": support.mean().item(),
        **means,
        "ratio_max": gathered[:, Objective._fields.index("ratio_max")].max().item(),
        "grad_norm": norm,
        "learning_rate": learning_rate,
    }
    run.log.write(record, step + 1)


def log_cycle(
    run: Run, cycle: int, judged: JudgedBatch, entropies: tuple[float, float], forwards: Mapping[str, int]
) -> None:
    """One line of metrics about the rollout batch, over all processes.

    entropies  of the first tokens, and of the rest; see `mean_entropy`
    forwards   rows of this process, by kind
    """
    device = judged.reward_B.device
    record: dict = {"kind": "cycle", "cycle": cycle, **judged.metrics}
    structure, refinement = gather(torch.tensor([entropies], device=device)).mean(0).tolist()
    record |= {"entropy_structure": structure, "entropy_refinement": refinement}
    kinds = ("rollout", "old", "reference", "new")
    rows = gather(torch.tensor([[forwards[kind] for kind in kinds]], device=device)).sum(0).tolist()
    record |= {"forwards": dict(zip(kinds, rows, strict=True)), "seconds": dict(run.seconds)}
    run.log.write(record, (cycle + 1) * run.settings.loop.updates_per_rollout)
    run.progress.cycle(record)


def save_shown_rollout(
    run: Run,
    backbone: Backbone,
    task: Mapping,
    reward: float,
    rollout: Rollout,
    batch: RolloutBatch,
    updates: Sequence[Update],
) -> None:
    """Keep the first rollout of a batch for the report: rollout.png, rollout.npz, and rollout.json.

    The arrays are rank [N], supports [K, N], stages [K] and the grid's (rows, columns).
    """
    if not run.processes.is_main_process:
        return
    folder = run.settings.folder
    to_image(backbone.decode(rollout.codes_BN[:1])[0]).save(folder / "rollout.png")
    np.savez_compressed(
        folder / "rollout.npz",
        rank=batch.rank_BN[0].cpu().numpy(),
        supports=np.stack([update.target_BN[0].cpu().numpy() for update in updates]),
        stages=np.array([update.stage for update in updates]),
        grid=np.array(backbone.grid),
    )
    write_atomically(folder / "rollout.json", json.dumps({"prompt": task["prompt"], "reward": reward}))


def save_pictures(run: Run, cycle: int, tasks: Sequence[Mapping], pixels: Callable[[], Tensor]) -> None:
    """Side by side in pictures/, as often as checkpoints are: what the cycle's first rollouts look like.

    tasks   of the pictures, each at least {"prompt": text}; kept in the file's metadata
    pixels  gives float32 [len(tasks), 3, H, W] in [-1, 1]; called only when a picture is due
    """
    loop = run.settings.loop
    if not run.processes.is_main_process or ((cycle + 1) % loop.save_steps and cycle + 1 != loop.cycles):
        return
    folder = run.settings.folder / "pictures"
    folder.mkdir(exist_ok=True)
    about = PngInfo()
    for number, task in enumerate(tasks, 1):
        about.add_itxt(f"prompt {number}", task["prompt"])
    row = torch.cat(list(to_levels(pixels())), dim=-1)
    levels_image(row).save(folder / f"cycle-{cycle + 1:06d}.png", pnginfo=about)


def refuse_other_settings(settings: RunSettings, saved: RunSettings) -> None:
    """UserError if a run would be continued with settings that make it another one; more cycles are fine."""
    unlike = {"reward": {"terms": {"__all__": TERM_MAY_CHANGE}}}
    now, then = (flatten(s.model_dump(mode="json", exclude=unlike), ".") for s in (settings, saved))
    changed = [key for key in now.keys() | then.keys() if now.get(key) != then.get(key)]
    changed = sorted(key for key in changed if key not in MAY_CHANGE and not key.startswith("log."))
    if changed:
        key = changed[0]
        raise UserError(
            f"{settings.folder}: the run there has {key} {then.get(key)}, not {now.get(key)}; "
            "continue it with the settings of its config.yaml, or give another `out`"
        )


def newest_checkpoint(settings: RunSettings, checkpoints: Sequence[Path], resume: bool) -> Path | None:
    """The checkpoint to continue from, None to begin; `checkpoints` are the run's complete ones, oldest first.

    Raises UserError if there is a run already, or one with other settings.
    """
    if checkpoints and not resume:
        raise UserError(f"{settings.folder}: a run is there already; continue it with --resume, or give another `out`")
    if checkpoints:
        refuse_other_settings(settings, load_settings([settings.folder / "config.yaml"]))
    return checkpoints[-1] if checkpoints else None


def open_folder(run: Run, cycle: int) -> None:
    """Make the run's folder ready for cycle `cycle`: settings, log, no evaluation of an earlier try."""
    folder = run.settings.folder
    run.processes.wait_for_everyone()  # before the folder is written to, everyone has looked at it
    if run.processes.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        if cycle == 0:  # a killed run's evaluation may have had other settings
            shutil.rmtree(folder / "eval", ignore_errors=True)
        save_settings(run.settings, folder / "config.yaml")
    run.log.open(from_cycle=cycle)
    run.processes.wait_for_everyone()  # all see the folder as it is now
