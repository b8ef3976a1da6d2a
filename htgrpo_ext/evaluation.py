"""Evaluation: a model paints a benchmark's prompts and is judged.

Q prompts, I images per prompt, B images of a batch, N image tokens.
"""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.benchmarks.base import Benchmark
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.files import write_atomically
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.rollouts.settings import RolloutSettings

PROMPTS_AT_ONCE = 32


@torch.no_grad()
def evaluate(
    benchmark: Benchmark,
    backbone: Backbone,
    rollout: RolloutSettings,
    batch_size: int | Literal["auto"],
    folder: Path,
    name: str,
    advance: Callable[[int], None],
) -> float:
    """Sample and judge; writes eval/`name`.npz and eval/prompts.json in a run's folder. Returns the seconds it took.

    The arrays are kept [Q, I, ...] (what the benchmark saves of an image), correct, partial and reasons [Q, I].
    The noise depends on the benchmark's seed alone, so models are compared on the same draws. Processes share the
    prompts; the first one writes.
    batch_size  rows per forward
    advance     is told how many images are done, after each batch
    """
    start, process = time.perf_counter(), PartialState()
    prompts, images = benchmark.prompts(), benchmark.images_per_prompt
    forward = SharedForward(backbone.image_logits, backbone.mask_id, batch_size)
    rank, processes = process.process_index, process.num_processes
    mine = range(len(prompts))[rank * len(prompts) // processes : (rank + 1) * len(prompts) // processes]
    rows = []
    for begin in range(0, len(mine), PROMPTS_AT_ONCE):
        places = mine[begin : begin + PROMPTS_AT_ONCE]
        asked = [prompts[place] for place in places for _ in range(images)]
        encoded = backbone.encode_prompts([prompt["prompt"] for prompt in asked])
        codes_BN = generate(
            backbone, forward, encoded, Draws(benchmark.seed, "evaluation", places, images), rollout
        ).codes_BN
        pixels = functools.cache(functools.partial(backbone.decode, codes_BN))
        verdicts = benchmark.judge(asked, codes_BN.cpu(), pixels)
        rows += list(zip(benchmark.keep(codes_BN.cpu(), pixels), verdicts, strict=True))
        advance(len(asked))
    rows = gather_object(rows)
    if process.is_main_process:
        write_atomically(folder / "eval" / "prompts.json", json.dumps(prompts))
        kept, verdicts = zip(*rows, strict=True)
        correct, partial, reasons = zip(*verdicts, strict=True)
        arrays = {
            "kept": np.stack(kept),
            "correct": np.array(correct),
            "partial": np.array(partial, dtype=np.float32),
            "reasons": np.array(reasons),
        }
        unfinished = folder / "eval" / f".{name}.partial.npz"
        np.savez_compressed(unfinished, **{k: a.reshape(len(prompts), images, *a.shape[1:]) for k, a in arrays.items()})
        unfinished.rename(folder / "eval" / f"{name}.npz")
    process.wait_for_everyone()
    return time.perf_counter() - start
