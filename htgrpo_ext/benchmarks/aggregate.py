"""GenEval's aggregation, with intervals: the overall score is the unweighted mean of the task accuracies.

S runs (seeds), Q prompts, I images per prompt.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from htgrpo_ext.statistics import Resampled, Resampling


def aggregate(prompts: Sequence[dict], values: NDArray, seed: int) -> dict:
    """Accuracy per task (each over its images) and overall, with 95 % intervals: see `htgrpo_ext.statistics`.

    prompts  Q of them, each with its task under "tag"
    values   bool or float [Q, I], or [S, Q, I]: verdicts; or trained less base, which gives a gain's paired interval
    Returns  {"overall": {"score", "low", "high"}, "tasks": {task: {"score", "low", "high", "images"}}}
    """
    values_SQI = np.asarray(values, dtype=np.float64)
    values_SQI = values_SQI[None] if values_SQI.ndim == 2 else values_SQI
    if values_SQI.ndim != 3 or values_SQI.shape[1] != len(prompts) or not values_SQI.size:
        raise ValueError(f"{len(prompts)} prompts, but values of shape {np.shape(values)}")
    runs, _, images = values_SQI.shape
    mean_SQ = values_SQI.mean(axis=2)
    tags = [prompt["tag"] for prompt in prompts]
    resampling = Resampling(tags, seed)
    parts = {}
    for task in dict.fromkeys(tags):
        member_Q = np.array([tag == task for tag in tags], dtype=np.float64)
        parts[task] = (mean_SQ * member_Q, member_Q)
    tasks = {
        task: _estimate(resampling.score([part])) | {"images": int(part[1].sum()) * runs * images}
        for task, part in parts.items()
    }
    return {"overall": _estimate(resampling.score(list(parts.values()))), "tasks": tasks}


def _estimate(score: Resampled) -> dict[str, float]:
    low, high = score.interval
    return {"score": score.value, "low": low, "high": high}
