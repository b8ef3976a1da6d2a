"""Generation order."""

from decimal import ROUND_HALF_UP, Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from htgrpo_ext.core.order import generation_rank
from htgrpo_ext.core.stages import structure_count

step_rows = st.integers(1, 9).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 5), min_size=n, max_size=n), min_size=1, max_size=4)
)


@given(step_rows)
def test_ranks_order_tokens_by_step_and_ties_by_place(rows):
    ranks = generation_rank(torch.tensor(rows, dtype=torch.int16))
    assert ranks.dtype == torch.int16
    for steps, rank in zip(rows, ranks.tolist(), strict=True):
        assert sorted(rank) == list(range(1, len(steps) + 1))
        # Python's tuples compare the step first, then the place.
        by_rank = sorted(range(len(steps)), key=lambda n: rank[n])
        assert [(steps[n], n) for n in by_rank] == sorted((step, n) for n, step in enumerate(steps))


def test_a_worked_row_of_ranks():
    # step 0: place 2; step 1: places 0, 3; step 4: places 1, 4
    assert generation_rank(torch.tensor([[1, 4, 0, 1, 4]])).tolist() == [[2, 4, 1, 3, 5]]


def test_ranks_fit_a_1024_pixel_image_made_in_one_step():
    assert generation_rank(torch.zeros(1, 4096, dtype=torch.int16)).tolist() == [list(range(1, 4097))]


@pytest.mark.parametrize(
    ("num_tokens", "ratio", "count"),
    [
        (1024, 0.3, 307),  # 307.2
        (5, 0.3, 2),  # 1.5
        (15, 0.1, 2),  # 1.5
        (5, 0.5, 3),  # 2.5, which Python's round() takes to 2
        (50, 0.29, 15),  # 14.5, in floats 14.499999999999998
        (30, 8 / 30, 8),
    ],
)
def test_structure_count_rounds_half_upwards(num_tokens, ratio, count):
    assert structure_count(num_tokens, ratio) == count


@given(st.integers(1, 4096), st.integers(1, 999))
def test_structure_count_is_the_decimal_rounding(num_tokens, thousandths):
    exact = Decimal(thousandths) * num_tokens / 1000
    assert structure_count(num_tokens, thousandths / 1000) == int(exact.quantize(Decimal(1), ROUND_HALF_UP))
