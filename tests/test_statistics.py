"""Intervals hold the truth as often as they say; differences are paired; prompts needed are what the power asks for."""

import json
from statistics import NormalDist

import numpy as np
import pytest

from helpers.synthetic import CEILING, Case, coverage
from htgrpo_ext import statistics
from htgrpo_ext.benchmarks.aggregate import aggregate
from htgrpo_ext.statistics import Resampled, Resampling


@pytest.fixture
def fewer(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)


def test_numbers_of_one_run_have_not_moved():
    """As `aggregate` gave them when it had a bootstrap of its own, to the last bit."""
    tags = ["b", "a", "c", "a", "b", "b", "a"] * 9
    rng = np.random.default_rng(12)
    verdicts = rng.random((63, 4)) < rng.random((63, 1))
    gains = verdicts.astype(float) - (rng.random((63, 4)) < 0.4)
    prompts = [{"tag": tag} for tag in tags]
    assert json.dumps([aggregate(prompts, verdicts, 5)["overall"], aggregate(prompts, gains, 11)]) == (
        '[{"score": 0.6111111111111112, "low": 0.5154320987654321, "high": 0.6975308641975309}, '
        '{"overall": {"score": 0.15432098765432098, "low": 0.021527777777777913, "high": 0.2777777777777778}, "tasks": '
        '{"b": {"score": 0.037037037037037035, "low": -0.1388888888888889, "high": 0.2037037037037037, "images": 108}, '
        '"a": {"score": 0.17592592592592593, "low": 0.009259259259259259, "high": 0.3425925925925926, "images": 108}, '
        '"c": {"score": 0.25, "low": -0.08333333333333333, "high": 0.5277777777777778, "images": 36}}}]'
    )


CASES = {
    "GenEval": Case(),
    "GenEval near the ceiling": Case(CEILING),
    "DPG-Bench overall": Case((0.8,)),
    "DPG-Bench category": Case((0.8,), pooled=True),
    "paired difference": Case(gain=0.1),
    "three runs that differ little": Case(runs=3, spread=0.05),
    "three runs that differ much": Case(runs=3, spread=0.4),
    "three runs less their base": Case(gain=0.1, runs=3, spread=0.1),
}


@pytest.mark.parametrize("name", CASES)
def test_intervals_hold_the_truth_in_93_to_97_of_100_benchmarks(name, fewer):
    """1,000 synthetic benchmarks; benchmarks/interval_coverage.py has more kinds, and all resamples."""
    overall, *_ = coverage(CASES[name])
    assert 0.93 <= overall <= 0.97


def parts(total, count=None):
    total_SQ = np.atleast_2d(np.asarray(total, dtype=float))
    return [(total_SQ, np.ones(total_SQ.shape[1]) if count is None else np.asarray(count, dtype=float))]


def test_a_score_is_a_sum_divided_by_a_sum():
    score = Resampling(["a", "a", "b"], 0).score(parts([3.0, 1.0, 0.0], [4, 4, 0]))
    assert score.value == 0.5
    assert score.interval == (0.25, 0.75)  # of two prompts: both the one, or both the other


def test_prompts_are_drawn_within_strata():
    """Each stratum is constant, so no draw changes anything."""
    score = Resampling(["a"] * 5 + ["b"] * 5, 0).score(parts([1.0] * 5 + [0.0] * 5))
    assert score.interval == (0.5, 0.5)


def test_a_draw_without_any_prompt_that_counts_is_left_out():
    score = Resampling([""] * 3, 0).score(parts([1.0, 0.0, 0.0], [1, 0, 0]))
    assert score.value == 1 and score.interval == (1.0, 1.0)
    with pytest.raises(ValueError, match="counts no prompt"):
        Resampling([""] * 3, 0).score(parts([0.0] * 3, [0.0] * 3))


def test_a_difference_is_paired():
    """Rows that differ by the same amount in every prompt differ by it for sure, however hard the prompts are."""
    hard = np.random.default_rng(0).random(50)
    resampling = Resampling([""] * 50, 3)
    ours, theirs = resampling.score(parts(hard + 0.01)), resampling.score(parts(hard), row=1)
    difference = ours.minus(theirs)
    assert difference.interval == pytest.approx((0.01, 0.01)) and difference.beyond_noise
    assert theirs.minus(ours).beyond_noise
    assert ours.interval[0] < theirs.value < ours.interval[1]
    same = ours.minus(ours)
    assert not same.beyond_noise and same.prompts_needed(50) is None


def test_runs_that_differ_by_their_images_noise_alone_do_not_widen_an_interval():
    rng = np.random.default_rng(1)
    chance_Q = rng.random(400)
    alike = [rng.binomial(4, np.tile(chance_Q, (3, 1))) / 4 for _ in range(50)]
    resampling = Resampling([""] * 400, 0)
    widths = [np.diff(resampling.score(parts(runs)).interval)[0] for runs in alike]
    prompts_alone = 2 * 1.96 * np.sqrt(np.mean([runs.mean(0).var() for runs in alike]) / 400)
    assert prompts_alone * 0.97 < np.median(widths) < prompts_alone * 1.15


def test_runs_that_differ_add_students_t_of_their_spread():
    """Prompts without any noise, so that only the three runs' own spread is left."""
    runs = np.array([[0.50], [0.60], [0.61]]) + np.zeros((3, 40))
    low, high = Resampling([""] * 40, 0).score(parts(runs)).interval
    half = 4.303 * np.std(runs[:, 0], ddof=1) / np.sqrt(3)  # Student's t with 2 degrees of freedom, 97.5 %
    assert high - low == pytest.approx(2 * half, rel=0.15)


def test_prompts_needed_are_those_of_a_test_with_80_percent_power():
    rng = np.random.default_rng(2)
    difference = Resampled(0.02, np.zeros(1), rng.normal(0.02, 0.03 / np.sqrt(100), 100_000))
    needed = difference.prompts_needed(100)
    # The textbook's n = ((z_0.975 + z_0.8) * deviation / difference)^2 with a deviation of 0.03 a prompt.
    assert needed == pytest.approx((2.8016 * 0.03 / 0.02) ** 2, rel=0.05)
    error = 0.03 / np.sqrt(needed)
    power = 1 - NormalDist(0.02, error).cdf(1.96 * error)
    assert power == pytest.approx(0.8, abs=0.03)


def test_more_seeds_of_resampling_agree():
    total = np.random.default_rng(5).random(300)
    intervals = np.array([Resampling([""] * 300, seed).score(parts(total)).interval for seed in range(20)])
    width = (intervals[:, 1] - intervals[:, 0]).mean()
    assert intervals.std(axis=0).max() < 0.05 * width
