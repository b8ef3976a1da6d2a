"""Evaluation while training: the same prompts, painted under the same noise, scored by the run's own rewards.

It moves nothing of the training: its noise is its own, its forwards are not counted, and it takes no gradient. The
model that scored best is kept in best/.

Q prompts, I images per prompt, R rewards; W images of all processes.
"""

import functools
import json
import shutil
import time
from collections.abc import Mapping

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.benchmarks.base import Evaluation
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.files import replace_folder
from htgrpo_ext.pixels import to_levels
from htgrpo_ext.rewards.mix import Scores
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.train.folder import BEST
from htgrpo_ext.train.guard import everywhere
from htgrpo_ext.train.log import finite_or_none
from htgrpo_ext.train.records import save_row
from htgrpo_ext.train.run import Run

SHOWN_PROMPTS = 6  # whose first image is kept as a picture


def evaluate_held_out(run: Run, backbone: Backbone, cycles_done: int) -> None:
    """Evaluate if that is due after so many cycles, and was not done before a resume. All processes call it together.

    Raises UserError as `Rewards.scores` does, and Stopped for a signal.
    """
    section, cycles = run.settings.eval, run.settings.loop.cycles
    if not run.held_out or section is None or section.every is None:
        return
    if cycles_done % section.every and cycles_done != cycles:
        return
    if everywhere(cycles_done not in run.log.evaluated):
        _evaluate(run, section, backbone, cycles_done)


@torch.no_grad()
def _evaluate(run: Run, section: Evaluation, backbone: Backbone, cycles_done: int) -> None:
    start, settings, images = time.perf_counter(), run.settings, section.images_per_prompt
    forward = SharedForward(backbone.image_logits, backbone.mask_id, settings.loop.batch_size)
    pending, shown, correct, places = [], {}, [], _share(len(run.held_out), run)
    at_once = max(1, _micro_batch(run) // images)  # no more images at once than in training, for the memory
    for begin in range(0, len(places), at_once):
        run.stop.check()
        part = places[begin : begin + at_once]
        asked = [run.held_out[place] for place in part for _ in range(images)]
        rows = backbone.encode_prompts([prompt["prompt"] for prompt in asked])
        draws = Draws(section.seed, "held out", part, images)
        codes_BN = generate(backbone, forward, rows, draws, settings.rollout).codes_BN
        pixels = functools.cache(functools.partial(backbone.decode, codes_BN))
        pending.append(run.rewards.begin(asked, codes_BN, pixels))
        if settings.benchmark:
            correct += [v.correct for v in settings.benchmark.judge(asked, codes_BN.cpu(), pixels)]
        first = {place: b for b, place in zip(range(0, len(asked), images), part, strict=True) if place < SHOWN_PROMPTS}
        shown |= {place: to_levels(pixels()[b]) for place, b in first.items()}
    scores, correct = run.rewards.scores(*pending), gather_object(correct)
    shown = dict(gather_object(list(shown.items())))
    if run.processes.is_main_process:
        count = len(run.held_out) * images  # what is behind these was painted to give all processes equally many
        record = {"kind": "eval", "cycles_done": cycles_done} | _numbers(scores, count, images)
        if correct:
            record["correct"] = sum(correct[:count]) / count
        record["seconds"] = time.perf_counter() - start
        _keep_best(run, backbone, record)
        _save_pictures(run, cycles_done, shown)
        run.log.write(record, cycles_done * settings.loop.updates_per_rollout)  # last: only now it is done
        run.progress.held_out(record)
    run.processes.wait_for_everyone()


def _share(count: int, run: Run) -> list[int]:
    """This process's places among `count` prompts. All have equally many: the last place is repeated behind the end."""
    each = -(-count // run.processes.num_processes)
    return [min(run.processes.process_index * each + i, count - 1) for i in range(each)]


def _micro_batch(run: Run) -> int:
    """Images of a process's micro-batch in training."""
    rollout, parts = run.settings.rollout, run.processes.num_processes * run.settings.loop.micro_batches
    return rollout.prompts_per_cycle // parts * rollout.rollouts_per_prompt


def _numbers(scores: Scores, count: int, images: int) -> dict:
    """Metrics of the first `count` images. `rewards` has each prompt's, None for one that was not scored."""
    kept_W = ~scores.failed_W & (torch.arange(len(scores.failed_W), device=scores.failed_W.device) < count)
    rewards = [list(map(finite_or_none, each)) for each in scores.reward_W[:count].view(-1, images).tolist()]
    lost = count - int(kept_W.sum())
    numbers = scores.means(kept_W) | scores.cut | {"images": count, "lost_images": lost}
    return numbers | ({"failure": scores.failure} if lost else {}) | {"rewards": rewards}


def _keep_best(run: Run, backbone: Backbone, record: Mapping) -> None:
    """Save what is trained as best/, if all images were scored and none of the trained models before scored as well."""
    folder = run.settings.folder / BEST
    numbers = {key: record[key] for key in ("cycles_done", "reward_mean")}
    about = folder / "best.json"
    before = json.loads(about.read_text())["reward_mean"] if about.exists() else -np.inf
    if not record["cycles_done"] or record["lost_images"] or record["reward_mean"] <= before:
        return
    partial = folder.with_name(f".{BEST}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    backbone.save(partial)
    (partial / about.name).write_text(json.dumps(numbers) + "\n")
    replace_folder(partial, folder)


def _save_pictures(run: Run, cycles_done: int, shown: Mapping[int, Tensor]) -> None:
    """Save the first prompts' pictures side by side in eval/pictures, and show them in TensorBoard and wandb."""
    places = sorted(shown)
    path = run.settings.folder / "eval" / "pictures" / f"cycle-{cycles_done:06d}.png"
    row = save_row(path, [run.held_out[place] for place in places], [shown[place] for place in places])
    run.log.write_picture("eval/pictures", np.asarray(row), cycles_done * run.settings.loop.updates_per_rollout)
