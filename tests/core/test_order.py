"""Generation order."""

from decimal import ROUND_HALF_UP, Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from htgrpo_ext.core.order import generation_rank, tie_places
from htgrpo_ext.core.sampler import appearance
from htgrpo_ext.core.stages import structure_count

step_rows = st.integers(1, 9).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 5), min_size=n, max_size=n), min_size=1, max_size=4)
)


@given(step_rows, st.sampled_from(["raster", "shuffled"]))
def test_ranks_order_tokens_by_step_and_ties_by_place(rows, ties):
    ranks = generation_rank(torch.tensor(rows, dtype=torch.int16), ties)
    assert ranks.dtype == torch.int16
    place = list(range(len(rows[0]))) if ties == "raster" else tie_places(len(rows[0]), ties).tolist()
    for steps, rank in zip(rows, ranks.tolist(), strict=True):
        assert sorted(rank) == list(range(1, len(steps) + 1))
        # Python's tuples compare the step first, then the place.
        by_rank = sorted(range(len(steps)), key=lambda n: rank[n])
        assert [(steps[n], place[n]) for n in by_rank] == sorted(zip(steps, place, strict=True))


def test_a_worked_row_of_ranks():
    # step 0: place 2; step 1: places 0, 3; step 4: places 1, 4
    assert generation_rank(torch.tensor([[1, 4, 0, 1, 4]]), "raster").tolist() == [[2, 4, 1, 3, 5]]


def test_ranks_fit_a_1024_pixel_image_made_in_one_step():
    ranks = generation_rank(torch.zeros(1, 4096, dtype=torch.int16), "raster")
    assert ranks.tolist() == [list(range(1, 4097))]


def test_the_shuffled_order_is_one_permutation_for_all_runs():
    torch.manual_seed(1)
    places = tie_places(64, "shuffled")
    torch.manual_seed(2)
    assert torch.equal(places, tie_places(64, "shuffled"))
    assert sorted(places.tolist()) == list(range(64)) != places.tolist()
    assert places[:8].tolist() == [21, 7, 32, 14, 26, 0, 31, 27]  # as it was when runs were first made with it


def test_raster_order_favours_the_upper_rows_and_shuffled_order_none():
    count, rows = 400, 32
    noise = torch.Generator().manual_seed(0)
    steps_BN, _ = appearance(lambda step: torch.rand(count, 2, rows * 32, generator=noise), (count, rows * 32), 12)

    def structure_share(ties):  # of each row of the canvas
        first_BN = generation_rank(steps_BN, ties) <= structure_count(rows * 32, 0.3)
        return first_BN.float().view(count, rows, 32).mean((0, 2))

    raster, shuffled = structure_share("raster"), structure_share("shuffled")
    assert raster.mean() == shuffled.mean() == pytest.approx(307 / 1024)
    assert raster[0] == pytest.approx(0.36, abs=0.02) and raster[-1] == pytest.approx(0.27, abs=0.02)
    assert shuffled[0] == pytest.approx(0.30, abs=0.02) and shuffled[-1] == pytest.approx(0.30, abs=0.02)
    row = torch.arange(float(rows))

    def slope(share):  # least squares, by hand
        return ((row - row.mean()) * (share - share.mean())).sum() / ((row - row.mean()) ** 2).sum() * (rows - 1)

    assert slope(raster) < -0.05 and abs(slope(shuffled)) < 0.02


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
