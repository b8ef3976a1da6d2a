"""MicroEval: images for the held-out prompts, judged by the strict verifier.

Q prompts, I images per prompt.
"""

import json
import time

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.micro import world
from htgrpo_ext.rewards.micro import verdicts
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.progress import TrainingProgress

PROMPTS_AT_ONCE = 32


@torch.no_grad()
def evaluate(
    backbone: Backbone, settings: RunSettings, accelerator: PartialState, progress: TrainingProgress, name: str
) -> float:
    """Sample and judge; writes eval/`name`.npz (codes [Q, I, N], correct, partial, reasons) and eval/prompts.json.

    The noise depends on eval.seed alone, so models are compared on the same draws. Returns the seconds it took.
    """
    start = time.perf_counter()
    prompts, images = world.split_prompts(settings.eval.prompts_per_task)[1], settings.eval.images_per_prompt
    forward = SharedForward(backbone.image_logits, backbone.mask_id, settings.loop.batch_size)
    task = progress.evaluating(name, len(prompts) * images)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    mine = range(len(prompts))[rank * len(prompts) // world_size : (rank + 1) * len(prompts) // world_size]
    rows = []
    for begin in range(0, len(mine), PROMPTS_AT_ONCE):
        places = mine[begin : begin + PROMPTS_AT_ONCE]
        asked = [prompts[place] for place in places for _ in range(images)]
        encoded = backbone.encode_prompts([prompt["prompt"] for prompt in asked])
        draws = Draws(settings.eval.seed, "evaluation", places, images)
        codes_BN = generate(backbone, forward, encoded, draws, settings.rollout).codes_BN.cpu()
        rows += list(zip(codes_BN.tolist(), verdicts(asked, codes_BN), strict=True))
        progress.advance(task, len(asked))
    rows = gather_object(rows)
    if accelerator.is_main_process:
        folder = settings.folder / "eval"
        folder.mkdir(exist_ok=True)
        (folder / "prompts.json").write_text(json.dumps(prompts))
        shape = (len(prompts), images)
        partial_file = folder / f".{name}.partial.npz"
        np.savez_compressed(
            partial_file,
            codes=np.array([codes for codes, _ in rows], dtype=np.uint16).reshape(*shape, -1),
            correct=np.array([verdict.correct for _, verdict in rows]).reshape(shape),
            partial=np.array([verdict.partial for _, verdict in rows], dtype=np.float32).reshape(shape),
            reasons=np.array([verdict.reason for _, verdict in rows]).reshape(shape),
        )
        partial_file.rename(folder / f"{name}.npz")
    accelerator.wait_for_everyone()
    return time.perf_counter() - start
