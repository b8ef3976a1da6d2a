"""GenEval's aggregation, with intervals: the overall score is the unweighted mean of the task accuracies.

S runs (seeds), Q prompts, I images per prompt, R resamples, T prompts of one task.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
COVERAGE = 0.95


def aggregate(prompts: Sequence[dict], values: NDArray, seed: int) -> dict:
    """Accuracy per task (each over its images) and overall, with 95 % bootstrap intervals.

    Images of one prompt are not independent, so whole prompts are drawn, with replacement, within each task. Given
    several runs on the same prompts, every resample draws its runs with replacement too, and the prompts it draws
    are the same for all of them. Of a few runs this shows the spread a little too small, as any bootstrap does.

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
    rng = np.random.default_rng(seed)
    weight_RS = rng.multinomial(runs, np.full(runs, 1 / runs), size=RESAMPLES) / runs

    tags = np.array([prompt["tag"] for prompt in prompts])
    tasks, scores, resampled = {}, [], []
    for task in dict.fromkeys(tags.tolist()):
        mean_ST = mean_SQ[:, tags == task]
        drawn_RT = rng.integers(mean_ST.shape[1], size=(RESAMPLES, mean_ST.shape[1]))
        task_R = np.take_along_axis(weight_RS @ mean_ST, drawn_RT, axis=1).mean(axis=1)
        scores.append(float(mean_ST.mean()))
        resampled.append(task_R)
        tasks[task] = _estimate(scores[-1], task_R) | {"images": mean_ST.size * images}
    return {"overall": _estimate(float(np.mean(scores)), np.mean(resampled, axis=0)), "tasks": tasks}


def _estimate(score: float, resampled_R: NDArray) -> dict[str, float]:
    low, high = np.quantile(resampled_R, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return {"score": score, "low": float(low), "high": float(high)}
