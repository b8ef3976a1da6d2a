"""What both loops write down while they train: metrics of updates and cycles, pictures, and one rollout to show."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.core.objective import Objective
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.views import RolloutBatch, Update
from htgrpo_ext.files import write_atomically
from htgrpo_ext.pixels import levels_image, to_image, to_levels
from htgrpo_ext.rewards.mix import JudgedBatch
from htgrpo_ext.train.processes import gathered
from htgrpo_ext.train.run import Run

SHOWN = 4  # pictures kept of a cycle, each of another prompt


def write_update(run: Run, step: int, stage: str, values: dict) -> None:
    """Write the metrics of optimizer step `step` (from 0), which was taken or skipped."""
    state = run.guard.close_step()
    if state == "idle":
        return
    cycle, k = divmod(step, run.settings.loop.updates_per_rollout)
    record = {"kind": "update", "cycle": cycle, "update": k, "step": step + 1, "stage": stage, **values}
    run.log.write(record | ({"skipped": True} if state == "skipped" else {}), step + 1)


def write_cycle(run: Run, cycle: int, values: dict) -> None:
    """Write the metrics of a rollout batch, with the seconds that its parts took, and show them."""
    skipped = run.guard.close_cycle()
    values = values | ({"skipped_updates": skipped} if skipped else {})
    record = {"kind": "cycle", "cycle": cycle, **values, "seconds": dict(run.seconds)}
    run.log.write(record, (cycle + 1) * run.settings.loop.updates_per_rollout)
    run.progress.cycle(record)


def log_update(
    run: Run, step: int, updates: Sequence[Update], results: Sequence[Objective], norm: float, learning_rate: float
) -> None:
    """Write an update's metrics, averaged over micro-batches and processes; the largest ratio is over all of them.

    updates  what step `step` trained, in parts that together are all of this process's rollouts
    """
    support = torch.cat([(update.target_BN > 0).float().sum(-1) for update in updates])
    stacked = torch.stack([torch.stack([value.detach() for value in result]) for result in results])
    everywhere = gathered(stacked.unsqueeze(0)).flatten(0, 1)
    values = {"support": support.mean().item()}
    values |= dict(zip(Objective._fields, everywhere.mean(0).tolist(), strict=True))
    values["ratio_max"] = everywhere[:, Objective._fields.index("ratio_max")].max().item()
    values |= {"grad_norm": norm, "learning_rate": learning_rate}
    write_update(run, step, updates[0].stage, values)


def log_cycle(
    run: Run, cycle: int, judged: JudgedBatch, entropies: tuple[float, float], forwards: Mapping[str, int]
) -> None:
    """Write the metrics of a rollout batch, over all processes.

    entropies  of structure and of refinement tokens; see `mean_entropy`
    forwards   rows of this process, by kind
    """
    device = judged.reward_B.device
    structure, refinement = gathered(torch.tensor([entropies], device=device)).mean(0).tolist()
    kinds = ["rollout", "old", "reference", "new"]
    if run.settings.rollout.refresh > 1:
        kinds.insert(1, "reused")
    rows = gathered(torch.tensor([[forwards[kind] for kind in kinds]], device=device)).sum(0).tolist()
    values = {**judged.metrics, "entropy_structure": structure, "entropy_refinement": refinement}
    if run.settings.loop.compile:
        from torch._dynamo.utils import counters  # seconds to import

        values["compiled_graphs"] = counters["stats"]["unique_graphs"]
    write_cycle(run, cycle, values | {"forwards": dict(zip(kinds, rows, strict=True))})


def save_shown_rollout(
    run: Run,
    backbone: Backbone,
    task: Mapping,
    reward: float,
    rollout: Rollout,
    batch: RolloutBatch,
    updates: Sequence[Update],
) -> None:
    """Keep the first rollout of a batch for the report: its image, ranks and support sets."""
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
    """Save the cycle's first rollouts side by side in pictures/, at every milestone.

    tasks   of the pictures, each at least {"prompt": text}; the text goes into the file's metadata
    pixels  gives float32 [len(tasks), 3, H, W] in [-1, 1]; called only when a picture is due
    """
    if not run.processes.is_main_process or not run.is_milestone(cycle + 1):
        return
    save_row(run.settings.folder / "pictures" / f"cycle-{cycle + 1:06d}.png", tasks, list(to_levels(pixels())))


def save_row(path: Path, tasks: Sequence[Mapping], levels: Sequence[Tensor]) -> Image.Image:
    """Save pictures side by side as one PNG, whole or not at all, with their prompts in its metadata.

    levels  uint8 [3, H, W] of each of the `tasks`
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    about = PngInfo()
    for number, task in enumerate(tasks, 1):
        about.add_itxt(f"prompt {number}", task["prompt"])
    row, partial = levels_image(torch.cat(list(levels), dim=-1)), path.with_name(f".{path.stem}.partial.png")
    row.save(partial, pnginfo=about)
    partial.rename(path)
    return row
