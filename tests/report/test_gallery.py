"""Which prompts a gallery shows, and that text from outside cannot become markup."""

import numpy as np
import pytest
from PIL import Image

from htgrpo_ext.report.comparison_page import comparison_page
from htgrpo_ext.report.gallery import Measure, Prompt, Run, gallery


def noise(place: int) -> list[Image.Image]:
    """Images that do not compress, so that each takes several kilobytes."""
    rng = np.random.default_rng(place)
    return [Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(2)]


def of(spreads: list[float], tasks: str, most_bytes: int = 10**9, verdicts: bool = False):
    prompts = [Prompt(f"prompt {n}", task) for n, task in enumerate(tasks)]
    value_QI = np.array(spreads)[:, None].repeat(2, axis=1)
    correct_QI = np.zeros((len(spreads), 2), dtype=bool) if verdicts else None
    runs = [Run(name, noise, correct_QI, np.full((len(spreads), 2), "")) for name in ("one", "two")]
    return gallery("Images", prompts, runs, [Measure("score", np.stack([value_QI, 0 * value_QI]))], most_bytes)


def test_all_prompts_are_shown_if_there_is_room():
    found = of([0.1, 0.5, 0.3], "aab")
    assert [each.place for each in found.shown] == [1, 2, 0]
    assert found.note == "All 3 prompts." and found.tasks == ["a", "b"]


def test_each_task_gives_those_that_differ_most_until_the_page_is_full():
    spreads, tasks = [0.9, 0.8, 0.7, 0.1, 0.2, 0.3], "aaabbb"
    one = sum(len(picture.uri) for row in of(spreads, tasks).shown[0].rows for picture in row.pictures) * 3 / 4
    found = of(spreads, tasks, int(2.5 * one))
    assert [each.place for each in found.shown] == [0, 5]
    assert found.note.startswith("2 of 6 prompts, those of each task whose scores differ most")
    assert [each.place for each in of(spreads, tasks, 1).shown] == [0]  # one at least


def test_runs_are_apart_image_by_image():
    """Equal means hide that each image is correct in one run only."""
    measure = Measure("verdict", np.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
    assert measure.spread_Q.tolist() == [1.0]


def test_an_image_without_a_score_is_in_no_mean_and_no_difference():
    measure = Measure("score", np.array([[[1.0, np.nan]], [[3.0, np.nan]], [[np.nan, np.nan]]]))
    assert measure.spread_Q.tolist() == [1.0]  # 2 and nothing, over two images
    assert [measure.mean(run, 0) for run in range(3)] == ["score 1.00", "score 3.00", "score –"]


def test_text_from_outside_is_escaped():
    bad = "<script>alert('&')</script>"
    runs = [Run(bad, noise, np.array([[True, False]]), np.array([["", bad]]))] * 2
    measures = [Measure(bad, np.zeros((2, 1, 2)))]
    shown = gallery(bad, [Prompt(bad, bad)], runs, measures)
    page = comparison_page(bad, [(bad, bad)], [], bad, [shown])
    assert bad not in page and page.count("<script>") == 1


@pytest.mark.parametrize("verdicts", [True, False])
def test_only_verdicts_are_right_or_wrong(verdicts):
    page = comparison_page("x", [], [], "", [of([0.5], "a", verdicts=verdicts)])
    assert ('class="image wrong"' in page) == verdicts == ('name="differ"' in page)
