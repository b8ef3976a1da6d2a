"""How sure a score is: intervals by bootstrap over prompts, paired differences, and how many prompts tell two apart.

Images of one prompt are not independent, so whole prompts are drawn, with replacement, within strata (GenEval: the
task). All rows of a table draw the same prompts: a difference of two rows is paired prompt by prompt.

A row may have several runs (training seeds). Drawing three runs from three shows their spread far too small. Their
spread is added as Student's t instead, less the part of it that the noise of the images explains.

S runs of a row, Q prompts, T prompts of a stratum, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
COVERAGE = 0.95
POWER = 0.8

Part = tuple[NDArray, NDArray]  # total_SQ and count_Q, float64: a score is the one's sum divided by the other's


@dataclass(frozen=True)
class Resampled:
    """A score or a difference of scores, and what other draws would have given."""

    value: float
    drawn_R: NDArray  # other prompts and other runs
    prompts_R: NDArray  # other prompts, the same runs

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end of the 95 % interval."""
        low, high = np.quantile(self.drawn_R, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        return float(low), float(high)

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval of a difference excludes 0."""
        low, high = self.interval
        return low > 0 or high < 0

    def minus(self, other: "Resampled") -> "Resampled":
        """The difference of two rows of one `Resampling`."""
        return Resampled(self.value - other.value, self.drawn_R - other.drawn_R, self.prompts_R - other.prompts_R)

    def prompts_needed(self, prompts: int) -> int | None:
        """How many prompts like these would tell a difference of this size from 0, in four of five such comparisons.

        prompts  how many gave this difference; more of them would have as many images each, of the same runs
        Returns  None for a difference of 0

        By the normal approximation: two-sided test at 5 %, power 80 %, a variance that falls as 1 / prompts. More
        prompts do not help against the spread between runs, which is left out.
        """
        if not self.value:
            return None
        normal = NormalDist()
        widths = normal.inv_cdf((1 + COVERAGE) / 2) + normal.inv_cdf(POWER)
        return max(1, math.ceil(prompts * (widths * float(self.prompts_R.std()) / self.value) ** 2))


class Resampling:
    """R draws of a benchmark's prompts, which every row and column of its table shares."""

    def __init__(self, strata: Sequence[str], seed: int):
        """strata: of each of Q prompts"""
        rng = np.random.default_rng(seed)
        strata_Q = np.asarray(strata)
        self._seed = seed
        self._t_R: dict[tuple[int, int], NDArray] = {}
        self._drawn = []  # of each stratum: which prompts it has, and the places drawn among them [R, T]
        for stratum in dict.fromkeys(strata_Q.tolist()):
            member_Q = strata_Q == stratum
            count = int(member_Q.sum())
            self._drawn.append((member_Q, rng.integers(count, size=(RESAMPLES, count))))

    def score(self, parts: Sequence[Part], row: int = 0) -> Resampled:
        """A column of a row: the mean of its parts, one part being a plain column.

        parts  of several, each over prompts that no other counts
        row    its number in the table; the runs of two rows are independent

        Raises ValueError for a part that counts nothing.
        """
        runs = len(parts[0][0])
        each = [self._part(total_SQ, count_Q) for total_SQ, count_Q in parts]
        run_S = np.mean([scores_S for scores_S, _ in each], axis=0)
        prompts_R = np.mean([resampled_R for _, resampled_R in each], axis=0)
        value = float(np.mean(run_S))
        if runs == 1:
            return Resampled(value, prompts_R, prompts_R)
        noise = sum(self._image_noise(*part) for part in parts) / len(parts) ** 2
        spread = math.sqrt(max(0.0, float(run_S.var(ddof=1)) - noise) / runs)
        return Resampled(value, prompts_R + spread * self._students_t(runs - 1, row), prompts_R)

    def _students_t(self, freedom: int, row: int) -> NDArray:
        """R values of Student's t in random order. They are its quantiles, because so few draws miss its tails."""
        if (freedom, row) not in self._t_R:
            rng = np.random.default_rng([self._seed, row])
            ranks_R = (np.arange(RESAMPLES) + 0.5) / RESAMPLES
            self._t_R[freedom, row] = rng.permutation(np.quantile(rng.standard_t(freedom, 100 * RESAMPLES), ranks_R))
        return self._t_R[freedom, row]

    def _part(self, total_SQ: NDArray, count_Q: NDArray) -> tuple[NDArray, NDArray]:
        """The score of each run [S], and of the mean over runs under every draw of prompts [R]."""
        if not count_Q.any():
            raise ValueError("a column that counts no prompt")
        total_S, total_R, count, count_R = np.zeros(len(total_SQ)), np.zeros(RESAMPLES), 0.0, np.zeros(RESAMPLES)
        for member_Q, drawn_RT in self._drawn:
            count_T, total_ST = count_Q[member_Q], total_SQ[:, member_Q]
            if count_T.any():
                total_S += total_ST.sum(axis=1)
                total_R += total_ST.mean(axis=0)[drawn_RT].sum(axis=1)
                count += count_T.sum()
                count_R += count_T[drawn_RT].sum(axis=1)
        score_S = total_S / count
        # A draw without any prompt that counts here says nothing, so it is taken to agree.
        return score_S, np.divide(total_R, count_R, out=np.full(RESAMPLES, score_S.mean()), where=count_R > 0)

    def _image_noise(self, total_SQ: NDArray, count_Q: NDArray) -> float:
        """The variance of a run's score that the noise of its images explains: what prompts and runs do not."""
        left_SQ = total_SQ - count_Q * (total_SQ.sum(axis=1, keepdims=True) / count_Q.sum())
        variance, runs = 0.0, len(total_SQ)
        for member_Q, _ in self._drawn:
            left_ST = left_SQ[:, member_Q & (count_Q > 0)]
            if left_ST.shape[1] > 1:
                left_ST = left_ST - left_ST.mean(axis=0) - left_ST.mean(axis=1, keepdims=True) + left_ST.mean()
                variance += float((left_ST**2).sum()) / (runs - 1) * left_ST.shape[1] / (left_ST.shape[1] - 1)
        return variance / float(count_Q.sum()) ** 2
