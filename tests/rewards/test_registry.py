"""Runs and `serve-reward` find a reward in the same registry, by the name of its scorer or its own."""

import pytest

from htgrpo_ext.errors import UserError
from htgrpo_ext.rewards.registry import REWARDS
from htgrpo_ext.rewards.scorers import scorer_class


def test_every_scorer_gives_exactly_the_rewards_of_its_rows():
    rows: dict[str, set[str]] = {}
    for name, reward in REWARDS.items():
        rows.setdefault(reward.scorer, set()).add(name)
    assert {name: set(scorer_class(name).rewards) for name in rows} == rows


def test_a_scorer_is_found_by_the_name_of_any_of_its_rewards():
    assert scorer_class("verdict") is scorer_class("partial") is scorer_class("micro")


def test_an_unknown_reward_is_one_line():
    with pytest.raises(UserError, match=r"^unknown reward `clap` \(one of aesthetic, clip, .*, or file.py:Class\)$"):
        scorer_class("clap")
