"""The grid and the rule of choice of a tuned comparison: read from a file, checked, applied."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.paths import CONFIGS
from htgrpo_ext.errors import UserError
from htgrpo_ext.report.tuned_data import short_rate
from htgrpo_ext.workflow.tuning import best_rate, best_value, read_comparison

MICRO = CONFIGS / "comparison/micro.yaml"


def refused(tmp_path: Path, old: str, new: str) -> str:
    text = MICRO.read_text()
    assert old in text
    (tmp_path / "plan.yaml").write_text(text.replace(old, new))
    with pytest.raises(UserError) as error:
        read_comparison(tmp_path / "plan.yaml")
    assert str(error.value).startswith(str(tmp_path / "plan.yaml"))
    return str(error.value)


def test_every_method_has_as_many_tuning_runs_with_a_seed_that_is_not_compared():
    plan = read_comparison(MICRO)
    known = {file.stem for file in (CONFIGS / "method").glob("*.yaml")}
    assert set(plan.methods) == known
    assert {len(plan.tuning.learning_rates) + len(of.values) for of in plan.methods.values()} == {7}
    assert plan.tuning.seed not in plan.seeds and len(plan.seeds) >= 3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("reference: htgrpo", "reference: ours", "reference `ours` is none of the methods"),
        ("  seed: 100 ", "  seed: 1 ", "tuning.seed 1 is a seed of the comparison too"),
        ("values: [0.2, 0.5]", "values: [0.2]", "methods differ in the number of values"),
        ("d1: [0.60, 0.619, 0.623]", "d1: [0.60]", "check.reported needs a score for each"),
        ("tie: 0.005", "ties: 0.005", "tuning.tie: Field required"),
        ("cycles: 10 ", "cycles: ten ", "cycles: Input should be a valid integer"),
        ("cycles: 10 ", "cycles: [ ", "cannot be read"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, old, new, said):
    assert said in refused(tmp_path, old, new)


def test_some_of_the_methods_must_hold_the_reference_and_the_one_that_sets_the_budget():
    plan = read_comparison(MICRO)
    assert list(plan.only(["maskgrpo", "htgrpo"]).methods) == ["htgrpo", "maskgrpo"]
    assert plan.only(["maskgrpo", "unigrpo", "htgrpo"]).check.reported == {"htgrpo": [0.66, 0.668, 0.676]}
    with pytest.raises(UserError, match="budget_of `maskgrpo` is none of the methods"):
        plan.only(["htgrpo", "d1"])
    with pytest.raises(UserError, match="unknown method `ours`"):
        plan.only(["ours"])


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({1e-4: 0.600, 2e-4: 0.610, 3e-4: 0.630, 6e-4: 0.580}, 3e-4),
        ({1e-4: 0.600, 2e-4: 0.6255, 3e-4: 0.630, 6e-4: 0.580}, 2e-4),  # 0.0045 apart: a tie, the smaller rate
        ({1e-4: 0.600, 2e-4: 0.6245, 3e-4: 0.630, 6e-4: 0.634}, 3e-4),  # 0.0095 and 0.004 below the best
    ],
)
def test_the_smallest_rate_of_those_that_tie_is_taken(scores, chosen):
    assert best_rate(scores, 0.005) == chosen


def test_the_default_value_is_taken_if_it_ties_with_the_best():
    assert best_value({0.2: 0.630, 0.3: 0.626, 0.5: 0.632}, 0.3, 0.005) == 0.5
    assert best_value({0.2: 0.630, 0.3: 0.628, 0.5: 0.632}, 0.3, 0.005) == 0.3
    assert best_value({0.0: 0.610, 0.15: 0.600, 0.3: 0.590}, 0.15, 0.005) == 0.0


@given(st.integers(1, 99), st.integers(-7, -1))
def test_a_short_rate_is_the_rate(digits, exponent):
    rate = digits * 10.0**exponent
    assert float(short_rate(rate)) == pytest.approx(rate, rel=1e-6) and short_rate(3e-4) == "3e-4"
