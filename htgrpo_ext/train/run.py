"""What both loops share around their cycles: the run's state, its prompts, records, folder, evaluation and report."""

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.config import load_settings, save_settings
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.objective import Objective
from htgrpo_ext.core.views import Update
from htgrpo_ext.errors import UserError
from htgrpo_ext.evaluation import evaluate
from htgrpo_ext.files import write_atomically
from htgrpo_ext.pixels import levels_image, to_image, to_levels
from htgrpo_ext.prompts.sources import PromptSources
from htgrpo_ext.report.page import write_report
from htgrpo_ext.report.summary import result_line, write_summary
from htgrpo_ext.rewards.mix import Judged, Rewards
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
    """What a training run carries from cycle to cycle."""

    settings: RunSettings
    accelerator: Accelerator
    backbone: Backbone
    forward: SharedForward
    optimizer: torch.optim.Optimizer
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


def log_update(
    run: Run, step: int, updates: Sequence[Update], results: Sequence[Objective], norm: float, learning_rate: float
) -> None:
    """One line of metrics, averaged over micro-batches and processes; the largest ratio is the largest of all.

    updates  what step `step` trained, in parts that together are all of this process's rollouts
    """
    cycle, k = divmod(step, run.settings.loop.updates_per_rollout)
    support = torch.cat([(update.target_BN > 0).float().sum(-1) for update in updates])
    stacked = torch.stack([torch.stack([value.detach() for value in result]) for result in results])
    gathered = run.accelerator.gather(stacked.unsqueeze(0)).flatten(0, 1)
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


def log_cycle(run: Run, cycle: int, judged: Judged, entropies: tuple[float, float]) -> None:
    """One line of metrics about the rollout batch, over all processes."""
    gather, device = run.accelerator.gather, judged.reward_B.device
    record: dict = {"kind": "cycle", "cycle": cycle, **judged.metrics}
    structure, refinement = gather(torch.tensor([entropies], device=device)).mean(0).tolist()
    record |= {"entropy_structure": structure, "entropy_refinement": refinement}
    kinds = ("rollout", "old", "reference", "new")
    rows = gather(torch.tensor([[run.forward.rows[kind] for kind in kinds]], device=device)).sum(0).tolist()
    record |= {"forwards": dict(zip(kinds, rows, strict=True)), "seconds": dict(run.seconds)}
    run.log.write(record, (cycle + 1) * run.settings.loop.updates_per_rollout)
    run.progress.cycle(record)


def save_shown_rollout(
    run: Run, prompt: dict, reward: float, codes_BN: Tensor, rank_BN: Tensor, updates: Sequence[Update]
) -> None:
    """Keep the first of B rollouts for the report: its picture, ranks, support sets, and prompt and reward.

    Writes rollout.png, rollout.npz (rank [N], supports [K, N], stages [K], grid: rows and columns) and rollout.json.
    """
    folder = run.settings.folder
    to_image(run.backbone.decode(codes_BN[:1])[0]).save(folder / "rollout.png")
    np.savez_compressed(
        folder / "rollout.npz",
        rank=rank_BN[0].cpu().numpy(),
        supports=np.stack([update.target_BN[0].cpu().numpy() for update in updates]),
        stages=np.array([update.stage for update in updates]),
        grid=np.array(run.backbone.grid),
    )
    write_atomically(folder / "rollout.json", json.dumps({"prompt": prompt["prompt"], "reward": reward}))


def save_pictures(run: Run, cycle: int, tasks: Sequence[Mapping], pixels: Callable[[], Tensor]) -> None:
    """Side by side in pictures/, as often as checkpoints are: what the cycle's first rollouts look like.

    tasks   of the pictures, each at least {"prompt": text}; kept in the file's metadata
    pixels  gives float32 [len(tasks), 3, H, W] in [-1, 1]; called only when a picture is due
    """
    loop = run.settings.loop
    if not run.accelerator.is_main_process or ((cycle + 1) % loop.save_steps and cycle + 1 != loop.cycles):
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
    run.accelerator.wait_for_everyone()  # before the folder is written to, everyone has looked at it
    if run.accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        if cycle == 0:  # a killed run's evaluation may have had other settings
            shutil.rmtree(folder / "eval", ignore_errors=True)
        save_settings(run.settings, folder / "config.yaml")
    run.log.open(from_cycle=cycle)
    run.accelerator.wait_for_everyone()  # all see the folder as it is now


def train_to_report(run: Run, cycles: Callable[[], object], model: nn.Module) -> Path:
    """Evaluate by the run's benchmark if it has one, train by `cycles`, save `model`, evaluate again, and report.

    Returns the run's folder.
    """
    settings, folder, benchmark = run.settings, run.settings.folder, run.settings.eval
    seconds = {"evaluation": 0.0} if benchmark else {}

    def evaluated(name: str) -> None:
        if benchmark:
            task = run.progress.evaluating(name, len(benchmark.prompts()) * benchmark.images_per_prompt)
            advance = partial(run.progress.advance, task)
            batch_size = settings.loop.batch_size
            seconds["evaluation"] += evaluate(
                benchmark, run.backbone, settings.rollout, batch_size, folder, name, advance
            )

    with run.progress:
        if benchmark and not (folder / "eval" / "base.npz").exists():
            with run.backbone.reference():
                evaluated("base")
        cycles()
        evaluated("trained")
    run.log.close()
    if run.accelerator.is_main_process:
        run.accelerator.unwrap_model(model).save_pretrained(folder / "model")
        summary = write_summary(folder, settings, peak_memory(), seconds)
        print(f"{write_report(folder)}\n{folder / 'summary.json'}\n{result_line(summary, benchmark)}")
    return folder


def peak_memory() -> int:
    """Most memory this process has held, in bytes: on the accelerator if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
