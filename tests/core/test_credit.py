"""Credit by generation order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from htgrpo_ext.core.credit import credit_weight


def test_a_worked_row_of_weights():
    # N_s = 2: the tokens of rank 1 and 2 are structure, rank 2 included
    weight_BN = credit_weight(torch.tensor([[3, 1, 4, 2]], dtype=torch.int16), 2, 1.2, 0.8)
    assert weight_BN.dtype == torch.float32
    assert weight_BN.tolist()[0] == pytest.approx([0.8, 1.2, 0.8, 1.2])


@given(st.integers(1, 10).flatmap(lambda n: st.tuples(st.permutations(range(1, n + 1)), st.integers(0, n))))
def test_the_n_s_first_tokens_get_the_structure_weight(case):
    ranks, count = case
    weights = credit_weight(torch.tensor([ranks]), count, 2.0, 0.5)[0].tolist()
    by_rank = [weights[ranks.index(rank)] for rank in range(1, len(ranks) + 1)]
    assert by_rank == [2.0] * count + [0.5] * (len(ranks) - count)
