"""Evaluation: a model paints a benchmark's prompts and is judged.

Q prompts, I images per prompt, B images of a batch, N image tokens.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray

from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.benchmarks.base import Benchmark, Verdict
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

    The arrays are kept [Q, I, ...] (what the benchmark saves of an image), correct, partial and reasons [Q, I]. With M
    measures there are also measures [Q, I, M], measured [M], their names, and lacking [M], why one could not be had.
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
    rows, lacking = [], {}
    for begin in range(0, len(mine), PROMPTS_AT_ONCE):
        places = mine[begin : begin + PROMPTS_AT_ONCE]
        asked = [prompts[place] for place in places for _ in range(images)]
        encoded = backbone.encode_prompts([prompt["prompt"] for prompt in asked])
        codes_BN = generate(
            backbone, forward, encoded, Draws(benchmark.seed, "evaluation", places, images), rollout
        ).codes_BN
        pixels = functools.cache(functools.partial(backbone.decode, codes_BN))
        verdicts = benchmark.judge(asked, codes_BN.cpu(), pixels)
        measured = benchmark.measure(asked, verdicts, pixels)
        lacking |= {name: why for name, why in measured.items() if isinstance(why, str)}
        columns = [np.full(len(asked), np.nan) if name in lacking else measured[name] for name in benchmark.measures]
        numbers = np.array(columns, dtype=np.float64).reshape(len(columns), len(asked)).T
        rows += list(zip(benchmark.keep(codes_BN.cpu(), pixels), verdicts, numbers, strict=True))
        advance(len(asked))
    rows, lacking = gather_object(rows), dict(gather_object(list(lacking.items())))
    if process.is_main_process:
        write_atomically(folder / "eval" / "prompts.json", json.dumps(prompts))
        arrays = _arrays(rows, len(prompts), images)
        if benchmark.measures:
            arrays["measured"] = np.array(list(benchmark.measures))
            arrays["lacking"] = np.array([lacking.get(name, "") for name in benchmark.measures])
        else:
            del arrays["measures"]
        unfinished = folder / "eval" / f".{name}.partial.npz"
        np.savez_compressed(unfinished, **arrays)
        unfinished.rename(folder / "eval" / f"{name}.npz")
    process.wait_for_everyone()
    return time.perf_counter() - start


def _arrays(rows: Sequence[tuple[NDArray, Verdict, NDArray]], prompts: int, images: int) -> dict[str, Any]:
    """What was kept, said and measured of each image, by prompt and image."""
    kept, verdicts, measures = zip(*rows, strict=True)
    correct, partial, reasons = zip(*verdicts, strict=True)
    arrays = {
        "kept": np.stack(kept),
        "correct": np.array(correct),
        "partial": np.array(partial, dtype=np.float32),
        "reasons": np.array(reasons),
        "measures": np.stack(measures),
    }
    return {name: array.reshape(prompts, images, *array.shape[1:]) for name, array in arrays.items()}
