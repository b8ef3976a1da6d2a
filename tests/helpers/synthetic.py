"""Synthetic benchmarks whose true scores are known, to see how often an interval holds the truth.

S runs, Q prompts, T prompts of a task.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from htgrpo_ext.statistics import Part, Resampled, Resampling

IMAGES = 4
GENEVAL = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
DPG_PROMPTS, DPG_MOST_QUESTIONS = 1065, 25
MIDDLE = (0.9, 0.6, 0.5, 0.8, 0.3, 0.4)  # how often images of each task are correct
CEILING = (0.99, 0.94, 0.70, 0.85, 0.81, 0.71)  # as the paper prints for Lumina-DiMOO


@dataclass(frozen=True)
class Case:
    """A kind of benchmark.

    The probability that an image is correct is the normal distribution function of a sum of normal draws, so that its
    mean over prompts and runs is known in closed form. Spreads are standard deviations of those draws.
    """

    means: tuple[float, ...] = MIDDLE  # of GenEval's tasks; a single number: DPG-Bench
    prompts: float = 1.0  # spread of difficulty between prompts
    runs: int = 1
    spread: float = 0.0  # of skill between runs: 0.1 moves a score by about 0.02
    gain: float | None = None  # ask for the paired difference against another model, this much worse
    gain_spread: float = 0.5  # of the gain between prompts
    base_runs: int = 1  # of the other model; a single one is not one of many that might have been trained
    pooled: bool = False  # DPG-Bench's categories: over questions, so that prompts with more of them count more

    @property
    def strata(self) -> list[str]:
        return [""] * DPG_PROMPTS if len(self.means) == 1 else [t for t, n in GENEVAL.items() for _ in range(n)]

    @property
    def centres(self) -> list[float]:
        return [ndtri(mean) * sqrt(1 + self.prompts**2 + self.spread**2) for mean in self.means]

    @property
    def truths(self) -> NDArray:
        """The true score of each part, or difference of scores."""
        below = sqrt(1 + self.prompts**2 + self.gain_spread**2 + (self.spread**2 if self.base_runs > 1 else 0))
        worse = [ndtr((centre - self.gain) / below) if self.gain is not None else 0 for centre in self.centres]
        return np.array(self.means) - worse


def benchmarks(case: Case, count: int, seed: int) -> Iterator[tuple[list[Part], list[Part]]]:
    """`count` benchmarks of a kind: the parts of a row, and those of its baseline (none without a gain)."""
    rng = np.random.default_rng(seed)
    task_Q = np.unique(case.strata, return_inverse=True)[1] if len(case.means) > 1 else np.zeros(DPG_PROMPTS, int)
    order = list(dict.fromkeys(task_Q.tolist()))
    for _ in range(count):
        skill_S = rng.normal(0, case.spread, case.runs)
        their_skill_S = rng.normal(0, case.spread, case.base_runs) if case.base_runs > 1 else np.zeros(1)
        ours, theirs = [], []
        for task, centre in zip(order, case.centres, strict=True):
            member_Q = task_Q == task
            size = int(member_Q.sum())
            questions_T = rng.integers(1, DPG_MOST_QUESTIONS + 1, size) if len(case.means) == 1 else np.ones(size, int)
            probit_T = centre + rng.normal(0, case.prompts, size)
            below_T = (case.gain or 0) + rng.normal(0, case.gain_spread, size)
            for parts, probit_ST in (
                (ours, probit_T + skill_S[:, None]),
                (theirs, probit_T - below_T + their_skill_S[:, None]),
            ):
                right_ST = rng.binomial(IMAGES * questions_T, ndtr(probit_ST))
                weight_T = np.ones(size) if case.pooled else 1 / questions_T
                total_SQ, count_Q = np.zeros((len(probit_ST), len(task_Q))), np.zeros(len(task_Q))
                total_SQ[:, member_Q], count_Q[member_Q] = right_ST * weight_T, IMAGES * questions_T * weight_T
                parts.append((total_SQ, count_Q))
        yield ours, theirs if case.gain is not None else []


def coverage(case: Case, count: int = 1000, seed: int = 0, each: bool = False) -> tuple[float, list[float], float]:
    """How often 95 % intervals hold the truth: of the mean of all parts, and of each; and the mean's average width."""
    resampling, truths = Resampling(case.strata, seed + 1), case.truths
    held, width = [], 0.0

    def scored(ours: list[Part], theirs: list[Part]) -> Resampled:
        score = resampling.score(ours)
        return score.minus(resampling.score(theirs, row=1)) if theirs else score

    for ours, theirs in benchmarks(case, count, seed):
        low, high = scored(ours, theirs).interval
        width += (high - low) / count
        places = range(len(ours)) if each else ()
        single = [(scored(ours[i : i + 1], theirs[i : i + 1]).interval, truths[i]) for i in places]
        held.append([low <= truths.mean() <= high, *(below <= true <= above for (below, above), true in single)])
    overall, *parts = np.mean(held, axis=0).tolist()
    return overall, parts, width
