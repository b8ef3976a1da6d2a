"""Brightness, edges and diversity of made-up pictures, against numbers by hand."""

import numpy as np
import pytest

from htgrpo_ext.benchmarks.pictures import brightness, diversity, edge_strength, grey_of

BLACK, WHITE = np.zeros((2, 3)), np.ones((2, 3))
COLUMNS = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])  # 4 pairs to the right, all 1; 3 pairs below, all 0
ROWS = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])  # 4 pairs to the right, all 0; 3 pairs below, all 0.5


def test_grey_is_the_mean_of_the_channels():
    levels_B3HW = np.array([[[[255, 0]], [[0, 0]], [[51, 255]]]], dtype=np.uint8)
    assert grey_of(levels_B3HW) == pytest.approx(np.array([[[306 / 765, 255 / 765]]]))


def test_brightness_and_edges_are_those_by_hand():
    pictures = np.stack([BLACK, WHITE, COLUMNS, ROWS])
    assert brightness(pictures) == pytest.approx([0, 1, 1 / 3, 1 / 4])
    assert edge_strength(pictures) == pytest.approx([0, 0, 4 / 7, 1.5 / 7])


def test_diversity_compares_a_picture_with_the_others_of_its_prompt_only():
    pictures = np.stack([BLACK, WHITE, COLUMNS, BLACK, BLACK])
    # black and white differ by 1, black and columns by 1/3, white and columns by 2/3
    assert diversity(pictures, ["a", "a", "a", "b", "b"]) == pytest.approx([2 / 3, 5 / 6, 1 / 2, 0, 0])


def test_one_picture_of_a_prompt_has_no_diversity():
    with pytest.raises(ValueError, match="^prompt `b` has one picture"):
        diversity(np.stack([BLACK, WHITE, COLUMNS]), ["a", "a", "b"])
