"""GenEval's aggregation and its intervals."""

import numpy as np
import pytest

from htgrpo_ext.benchmarks.aggregate import aggregate


def prompts(**counts: int) -> list[dict]:
    return [{"tag": task} for task, count in counts.items() for _ in range(count)]


def test_overall_is_the_mean_of_tasks_not_of_images():
    # single_object: 3 prompts, 6 images, 3 right; counting: 1 prompt, 2 images, 2 right.
    correct = np.array([[1, 0], [1, 1], [0, 0], [1, 1]], dtype=bool)
    result = aggregate(prompts(single_object=3, counting=1), correct, seed=0)
    assert result["tasks"]["single_object"]["score"] == 0.5 and result["tasks"]["single_object"]["images"] == 6
    assert result["tasks"]["counting"]["score"] == 1.0 and result["tasks"]["counting"]["images"] == 2
    assert result["overall"]["score"] == 0.75  # 5 of 8 images would be 0.625


def test_tasks_may_come_in_any_order():
    mixed = [{"tag": "a"}, {"tag": "b"}, {"tag": "a"}]
    result = aggregate(mixed, np.array([[1, 1], [0, 0], [0, 1]]), seed=0)
    assert [result["tasks"][task]["score"] for task in ("a", "b")] == [0.75, 0.0]


@pytest.mark.parametrize("value", [0, 1])
def test_where_all_images_agree_the_interval_is_a_point(value):
    result = aggregate(prompts(a=4, b=2), np.full((6, 3), value), seed=0)
    assert result["overall"] == {"score": value, "low": value, "high": value}


def test_images_of_one_prompt_are_one_draw():
    """All images of a prompt alike: the interval is as wide as with one image a prompt, not four times the data."""
    rng = np.random.default_rng(1)
    one = rng.random((400, 1)) < 0.5
    result = aggregate(prompts(a=400), np.repeat(one, 4, axis=1), seed=0)["overall"]
    width = 2 * 1.96 * (0.25 / 400) ** 0.5  # of the normal approximation for 400 draws
    assert result["high"] - result["low"] == pytest.approx(width, rel=0.1)


def test_overall_interval_is_that_of_a_mean_of_independent_tasks():
    correct = np.tile(np.array([[1], [0]]), (200, 1))
    result = aggregate(prompts(a=100, b=300), correct, seed=0)["overall"]
    deviation = (0.25 / 100 + 0.25 / 300) ** 0.5 / 2
    assert result["high"] - result["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(2), 0
    for trial in range(200):
        chance = rng.beta(2, 2, size=(120, 1))  # prompts differ in difficulty; 0.5 on average
        result = aggregate(prompts(a=60, b=60), rng.random((120, 4)) < chance, seed=trial)["overall"]
        covered += result["low"] <= 0.5 <= result["high"]
    assert 0.88 <= covered / 200 <= 0.99


def test_paired_gain_is_tighter_than_its_two_scores():
    rng = np.random.default_rng(3)
    base = rng.random((100, 1)).repeat(4, axis=1) < 0.5
    trained = base | (rng.random((100, 4)) < 0.2)
    all_a = prompts(a=100)
    gain = aggregate(all_a, trained.astype(float) - base, seed=0)["overall"]
    apart = [aggregate(all_a, scored, seed=0)["overall"] for scored in (base, trained)]
    assert gain["score"] == pytest.approx(apart[1]["score"] - apart[0]["score"])
    assert gain["high"] - gain["low"] < 0.7 * min(part["high"] - part["low"] for part in apart)
    assert gain["low"] > 0


def test_several_runs_are_averaged_and_their_spread_widens_the_interval():
    ours = np.array([[1, 1], [0, 0]] * 20)
    alike, apart = np.stack([ours, ours]), np.stack([np.full((40, 2), 0.75), np.full((40, 2), 0.25)])
    one, two, far = (aggregate(prompts(a=40), values, seed=0) for values in (ours, alike, apart))
    assert one["overall"]["score"] == two["overall"]["score"] == far["overall"]["score"] == 0.5
    assert two["tasks"]["a"]["images"] == 160
    assert two["overall"]["high"] - two["overall"]["low"] == pytest.approx(2 * 1.96 * (0.25 / 40) ** 0.5, rel=0.15)
    # No prompt's noise is left. Student's t with 1 degree of freedom is 12.7 at 97.5 %, times 0.3536 / sqrt(2).
    assert far["overall"]["high"] - far["overall"]["low"] == pytest.approx(2 * 3.18, rel=0.05)


def test_same_seed_gives_the_same_interval():
    correct = np.random.default_rng(4).random((30, 4)) < 0.5
    assert aggregate(prompts(a=30), correct, 7) == aggregate(prompts(a=30), correct, 7)


@pytest.mark.parametrize("shape", [(3, 4), (2, 0), (2,)])
def test_values_that_do_not_fit_the_prompts_are_refused(shape):
    with pytest.raises(ValueError, match="2 prompts"):
        aggregate(prompts(a=2), np.zeros(shape), seed=0)
