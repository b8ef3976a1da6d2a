"""Support sets."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from htgrpo_ext.core.support import support_set, support_size


def chi_square(seen: torch.Tensor, expected: float) -> float:
    return ((seen.double() - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize(
    ("candidates", "rate", "size"),
    [
        (10, 0.7, 7),
        (100, 0.07, 7),  # 7.000000000000001 in floats
        (1024, 1.0, 1024),
        (10, 0.71, 8),
        (307, 0.5, 154),  # 153.5
        (3, 0.001, 1),
    ],
)
def test_worked_support_sizes(candidates, rate, size):
    assert support_size(candidates, rate) == size


@pytest.mark.parametrize("candidates", [1, 3, 10, 64, 307, 717, 1000, 1024, 4096])
def test_support_size_is_the_exact_ceiling_of_the_decimal_rate(candidates):
    for thousandths in range(1, 1001):
        exact = -(-thousandths * candidates // 1000)  # whole numbers throughout
        assert support_size(candidates, thousandths / 1000) == exact


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.integers(1, 100), st.data())
def test_support_has_exactly_ceil_rate_n_of_the_candidates(sizes, percent, data):
    num_tokens, count = sizes
    rows = [data.draw(st.permutations([True] * count + [False] * (num_tokens - count))) for _ in range(3)]
    candidate_BN = torch.tensor(rows)
    noise = data.draw(st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=1, max_size=5))
    uniform_BN = torch.tensor((noise * 3 * num_tokens)[: 3 * num_tokens]).view(3, num_tokens)  # ties and all
    support_BN = support_set(candidate_BN, percent / 100, uniform_BN)
    assert support_BN.dtype == torch.bool
    assert support_BN.sum(-1).tolist() == [-(-percent * count // 100)] * 3
    assert not (support_BN & ~candidate_BN).any()


def test_every_pair_of_candidates_is_equally_likely():
    # 2 of the 4 candidates {0, 2, 3, 5}: 6 pairs, 4,000 each of 24,000
    rows = 24_000
    candidate_BN = torch.tensor([[1, 0, 1, 1, 0, 1]]).bool().expand(rows, 6)
    noise = torch.rand(rows, 6, generator=torch.Generator().manual_seed(0))
    support_BN = support_set(candidate_BN, 0.5, noise)
    pairs = torch.tensor([[n in pair for n in range(6)] for pair in combinations([0, 2, 3, 5], 2)])
    seen = (support_BN[:, None] == pairs).all(-1).sum(0)
    assert seen.sum() == rows
    assert chi_square(seen, rows / 6) < 30  # 5 degrees of freedom: exceeded once in 70,000


def test_rollouts_draw_independently():
    # Two neighbours each keep 1 of 3: 9 joint outcomes, 2,000 each of 18,000
    noise = torch.rand(36_000, 3, generator=torch.Generator().manual_seed(1))
    kept = support_set(torch.ones(36_000, 3, dtype=torch.bool), 1 / 3, noise).int().argmax(-1).view(-1, 2)
    seen = torch.bincount(kept[:, 0] * 3 + kept[:, 1], minlength=9)
    assert chi_square(seen, 2000) < 40  # 8 degrees of freedom: exceeded once in 300,000


def test_a_row_draws_the_same_whatever_its_neighbours_are():
    noise = torch.rand(6, 9, generator=torch.Generator().manual_seed(2))
    everything = torch.ones(6, 9, dtype=torch.bool)
    together = support_set(everything, 0.4, noise)
    alone = [support_set(everything[i : i + 1], 0.4, noise[i : i + 1]) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("rows", [[[0, 0, 0], [0, 0, 0]], [[1, 1, 0], [0, 0, 0]], [[1, 1, 0], [1, 0, 0]]])
def test_rows_without_candidates_or_of_unequal_count_are_refused(rows):
    with pytest.raises(ValueError, match="same number of candidates"):
        support_set(torch.tensor(rows).bool(), 0.5, torch.zeros(2, 3))


def test_inputs_are_left_alone():
    candidate_BN, noise = torch.tensor([[True, False, True]]), torch.tensor([[0.5, 0.1, 0.2]])
    assert support_set(candidate_BN, 0.5, noise).tolist() == [[False, False, True]]
    assert candidate_BN.tolist() == [[True, False, True]]
    assert torch.equal(noise, torch.tensor([[0.5, 0.1, 0.2]]))
