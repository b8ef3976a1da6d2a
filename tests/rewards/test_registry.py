"""A reward is added by one file and one row; runs and `serve-reward` find it in the same registry."""

import json

import pytest
import torch

from helpers.micro_runs import tiny_checkpoint, tiny_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.rewards import scorers
from htgrpo_ext.rewards.registry import REWARDS, Reward
from htgrpo_ext.rewards.scorers import scorer_class
from htgrpo_ext.workflow.train import train

BRIGHTNESS = """
class Scorer:
    rewards = ("brightness",)

    def __init__(self, device, gain: float = 1.0):
        self.gain = gain

    def score(self, prompts, images):
        return {"brightness": [self.gain * image.float().mean().item() / 255 for image in images]}
"""


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


def test_one_file_and_one_row_add_a_reward_to_a_run(tmp_path, monkeypatch):
    (tmp_path / "bright.py").write_text(BRIGHTNESS)
    monkeypatch.setattr(scorers, "__path__", [*scorers.__path__, str(tmp_path)])
    monkeypatch.setitem(REWARDS, "brightness", Reward("bright", in_process=True))
    assert scorer_class("brightness")(torch.device("cpu")).score([], []) == {"brightness": []}
    terms = "reward.terms=[{name: brightness, weight: 1.0, options: {gain: 2.0}}]"
    folder = train(tiny_settings("htgrpo", tiny_checkpoint(tmp_path), tmp_path / "run", terms, "loop.cycles=2"))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    cycles = [record for record in records if record["kind"] == "cycle"]
    assert len(cycles) == 2 and all(cycle["brightness_std"] > 0 for cycle in cycles)
    assert all(cycle["reward_mean"] == cycle["brightness_mean"] for cycle in cycles)
    assert (folder / "report.html").exists()
