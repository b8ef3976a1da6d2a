"""Runs whose memory ends, as a pretended error says: in scoring, and in a backward after it has added gradients."""

from itertools import count

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from helpers.micro_runs import records, tiny_settings
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.errors import UserError
from htgrpo_ext.train.checkpoint import complete_checkpoints
from htgrpo_ext.workflow.train import train

pytestmark = pytest.mark.usefixtures("reward_with_spread")
AUTO = ("loop.batch_size=auto", "rollout.prompts_per_cycle=12")
HELP = "; loop.batch_size: {}; more loop.micro_batches or model.activation_checkpointing take less"


@pytest.fixture
def backwards_that_fail(monkeypatch):
    """Makes the backwards of these numbers, from 1, run out of memory when they are done."""
    original = Accelerator.backward

    def these(*numbers):
        calls = count(1)

        def backward(self, loss, **keywords):
            original(self, loss, **keywords)
            if next(calls) in numbers:
                raise torch.OutOfMemoryError("no memory left\nfor gradients")

        monkeypatch.setattr(Accelerator, "backward", backward)

    return these


def weights_of(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_auto_does_a_broken_update_again_with_nothing_of_the_first_try(checkpoint, tmp_path, backwards_that_fail):
    whole = train(tiny_settings("htgrpo", checkpoint, tmp_path / "whole", *AUTO))
    backwards_that_fail(1, 4)  # in the first update, and behind the first micro-batch of the second
    broken = train(tiny_settings("htgrpo", checkpoint, tmp_path / "broken", *AUTO))
    before = load_file(checkpoint / "model.safetensors")
    found, expected = weights_of(broken), weights_of(whole)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-6)
    assert max(float((expected[name] - before[name]).abs().max()) for name in before) > 1e-5
    norms = [[update["grad_norm"] for update in records(folder, "update")] for folder in (whole, broken)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_a_fixed_batch_size_ends_in_one_line(checkpoint, tmp_path, backwards_that_fail):
    backwards_that_fail(1)
    expected = "^update: out of memory .no memory left for gradients." + HELP.format("try auto")
    with pytest.raises(UserError, match=expected):
        train(tiny_settings("htgrpo", checkpoint, tmp_path / "run"))


def test_between_two_updates_of_a_cycle_nothing_is_saved(checkpoint, tmp_path, backwards_that_fail):
    backwards_that_fail(5)  # one micro-batch, two updates a cycle: the first of the third cycle is the fifth
    settings = tiny_settings("htgrpo", checkpoint, tmp_path / "a", "loop.cycles=3", "loop.micro_batches=1")
    with pytest.raises(UserError, match="^update: out of memory"):
        train(settings)
    assert [cycle for cycle, _ in complete_checkpoints(settings.folder / "checkpoints")] == [2]
    backwards_that_fail(6)
    settings = tiny_settings("htgrpo", checkpoint, tmp_path / "b", "loop.cycles=3", "loop.micro_batches=1")
    with pytest.raises(UserError, match="^update: out of memory"):
        train(settings)
    assert complete_checkpoints(settings.folder / "checkpoints") == []


def test_scoring_that_does_not_fit_ends_in_one_line(checkpoint, tmp_path, monkeypatch):
    original = SharedForward.log_probs

    def log_probs(self, *given):
        if given[-1] == "reference":
            raise torch.OutOfMemoryError("no memory left")
        return original(self, *given)

    monkeypatch.setattr(SharedForward, "log_probs", log_probs)
    expected = "^scoring: out of memory .no memory left." + HELP.format("not even one row fits")
    with pytest.raises(UserError, match=expected):
        train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", "loop.batch_size=auto"))
