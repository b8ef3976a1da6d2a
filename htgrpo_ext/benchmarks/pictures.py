"""What pictures look like, in numbers that no reward sees: a reward can be won by what they lose.

B pictures of H x W pixels, uint8 [B, 3, H, W]. Grey is the mean of the three channels, 0 black and 1 white.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray


def grey_of(levels_B3HW: NDArray) -> NDArray:
    """Grey float64 [B, H, W]."""
    return levels_B3HW.mean(1) / 255


def brightness(grey_BHW: NDArray) -> NDArray:
    """Mean grey of each picture [B], 0 to 1."""
    return grey_BHW.mean((1, 2))


def edge_strength(grey_BHW: NDArray) -> NDArray:
    """Mean difference in size of neighbours, right and below, over all such pairs of a picture [B], 0 to 1."""
    right, below = np.abs(np.diff(grey_BHW, axis=2)), np.abs(np.diff(grey_BHW, axis=1))
    pairs = right[0].size + below[0].size
    return (right.sum((1, 2)) + below.sum((1, 2))) / pairs


def diversity(grey_BHW: NDArray, prompts: Sequence[str]) -> NDArray:
    """Mean difference in size of each picture's pixels from those of the other pictures of its prompt [B], 0 to 1.

    prompts  one per picture; equal ones are adjacent. Raises ValueError for a prompt with one picture
    """
    found, start = [], 0
    for prompt, group in groupby(prompts):
        count = len(list(group))
        if count < 2:
            raise ValueError(f"prompt `{prompt}` has one picture; no other differs from it")
        of_prompt = grey_BHW[start : start + count]
        apart = np.abs(of_prompt[:, None] - of_prompt[None]).mean((2, 3))  # 0 on the diagonal
        found += list(apart.sum(1) / (count - 1))
        start += count
    return np.array(found)
