import os

import pytest
import torch
from hypothesis import settings

from helpers.llada_checkpoints import lumina_checkpoint, mmada_checkpoint, write_vqvae
from helpers.micro_runs import even_codes, tiny_checkpoint

collect_ignore = [] if os.environ.get("HTGRPO_TEST_DEVICE") else ["devices"]  # see devices/conftest.py
torch.set_num_threads(1)
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def mmada_folder(tmp_path_factory):
    """A tiny MMaDA checkpoint, never written to."""
    return mmada_checkpoint(tmp_path_factory.mktemp("mmada"))


@pytest.fixture(scope="session")
def lumina_folder(tmp_path_factory):
    """A tiny Lumina-DiMOO checkpoint with its VQ model, never written to."""
    folder = lumina_checkpoint(tmp_path_factory.mktemp("lumina"))
    write_vqvae(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint of the micro model, never written to."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def reward_with_spread(monkeypatch):
    """A reward that a random model's images differ in, in place of the verifier's."""
    monkeypatch.setattr("htgrpo_ext.rewards.scorers.micro.score_codes", even_codes)


@pytest.fixture(scope="session")
def amused_folder(tmp_path_factory):
    """A tiny aMUSEd checkpoint, never written to."""
    from helpers.amused_checkpoints import amused_checkpoint

    return amused_checkpoint(tmp_path_factory.mktemp("amused"))
