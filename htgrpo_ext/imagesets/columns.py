"""The columns of a benchmark's table, as sums and counts per prompt, so that any statistic can resample prompts.

Q prompts of a set.
"""

from dataclasses import dataclass

from numpy.typing import NDArray


@dataclass(frozen=True)
class Column:
    """A score: the sum of `total_Q` over prompts, divided by the sum of `count_Q`, times `scale`."""

    name: str
    title: str  # as in the paper's table
    total_Q: NDArray  # float64: of a prompt, the sum over its images or answers that count here
    count_Q: NDArray  # float64: how many those are; 0 where the prompt does not belong to this column
    scale: float = 1.0  # DPG-Bench: 100


@dataclass(frozen=True)
class Columns:
    """All columns of one scorer on one set."""

    columns: tuple[Column, ...]
    strata_Q: NDArray  # str: prompts are resampled within equal ones (GenEval: the task)
    overall: str  # name of the column that is the overall score; "mean": the unweighted mean of all; "": there is none
