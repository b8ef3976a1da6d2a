"""Stages and annealing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from htgrpo_ext.core.stages import sampling_rate, schedule, stage_tokens

budgets = st.dictionaries(st.sampled_from(["refinement", "global", "structure"]), st.integers(0, 5))


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.permutations(range(1, n + 1)), st.integers(0, n))))
def test_structure_and_refinement_split_the_tokens_of_global(case):
    ranks, count = case
    rank_BN = torch.tensor([ranks, ranks[::-1]], dtype=torch.int16)
    whole, first, rest = (stage_tokens(rank_BN, count, s) for s in ("global", "structure", "refinement"))
    assert whole.all()
    assert torch.equal(first ^ rest, whole)
    assert first.sum(-1).tolist() == [count, count]
    assert {rank for rank, chosen in zip(ranks, first[0].tolist(), strict=True) if chosen} == set(range(1, count + 1))


def test_the_default_budget_runs_global_then_structure_then_refinement():
    plan = [(s.stage[0], s.index, s.length) for s in schedule({"refinement": 2, "global": 2, "structure": 4})]
    assert plan == [
        ("g", 0, 2), ("g", 1, 2),
        ("s", 0, 4), ("s", 1, 4), ("s", 2, 4), ("s", 3, 4),
        ("r", 0, 2), ("r", 1, 2),
    ]  # fmt: skip


@given(budgets)
def test_a_schedule_spends_the_budget_in_order(budget):
    plan = schedule(budget)
    assert len(plan) == sum(budget.values())
    names = [s.stage for s in plan]
    assert names == sorted(names, key=["global", "structure", "refinement"].index)
    for stage, length in budget.items():
        mine = [s for s in plan if s.stage == stage]
        assert [s.index for s in mine] == list(range(length)) and all(s.length == length for s in mine)


@pytest.mark.parametrize(
    ("mode", "length", "rates"),
    [
        ("down", 4, [1.0, 0.833333, 0.666667, 0.5]),  # a third of 1 - 0.5 is 0.166667
        ("up", 4, [0.5, 0.666667, 0.833333, 1.0]),
        ("constant", 4, [1.0, 1.0, 1.0, 1.0]),
        ("down", 2, [1.0, 0.5]),
        ("down", 1, [1.0]),  # u = 0
        ("up", 1, [0.5]),
        ("constant", 1, [1.0]),
    ],
)
def test_worked_sampling_rates(mode, length, rates):
    assert [sampling_rate(j, length, 0.5, 1.0, mode) for j in range(length)] == pytest.approx(rates, abs=1e-6)


@given(st.integers(2, 9), st.floats(0.01, 1), st.floats(0.01, 1), st.sampled_from(["down", "up"]))
def test_rates_run_evenly_from_one_end_to_the_other(length, a, b, mode):
    low, high = sorted((a, b))
    rates = [sampling_rate(j, length, low, high, mode) for j in range(length)]
    ends = [high, low] if mode == "down" else [low, high]
    assert [rates[0], rates[-1]] == pytest.approx(ends)
    gaps = [y - x for x, y in zip(rates, rates[1:], strict=False)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), abs=1e-9)
