"""Tests that run on an accelerator: HTGRPO_TEST_DEVICE is `pretend` (helpers/pretend_accelerator.py) or `cuda`.

`make test` runs them on the pretend one, in a process of their own, because its registration cannot be undone
(tests/test_devices.py); `make test-gpu` on CUDA. A run finds its device as any run does, by accelerate: CUDA if it is
there, or the device that ACCELERATE_TORCH_DEVICE names.
"""

import os

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from helpers import pretend_accelerator
from helpers.micro_runs import even_codes

DEVICE = os.environ.get("HTGRPO_TEST_DEVICE", "")
if DEVICE not in (pretend_accelerator.NAME, "cuda"):
    raise pytest.UsageError("tests/devices: set HTGRPO_TEST_DEVICE to pretend or cuda")
if DEVICE == pretend_accelerator.NAME:
    pretend_accelerator.register()


def pytest_collection_modifyitems(items):
    if DEVICE == "cuda" and not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture
def device() -> str:
    """The name of the accelerator under test."""
    return DEVICE


@pytest.fixture(autouse=True)
def on(monkeypatch, device):
    """Chooses the device of the runs that follow; it is the accelerator until the test chooses another."""

    def choose(name: str) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        if name == "cuda":
            monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
        else:
            monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", name)

    choose(device)
    yield choose
    choose("cpu")


@pytest.fixture(autouse=True)
def reward_of_codes(monkeypatch):
    """A reward that the images of a random micro model differ in."""
    monkeypatch.setattr("htgrpo_ext.rewards.scorers.micro.score_codes", even_codes)
