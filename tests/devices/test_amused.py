"""aMUSEd, tiny, on an accelerator: a cycle, and the checkpoint after it."""

import math

import pytest
import torch

from helpers.amused_checkpoints import settings_of
from helpers.micro_runs import records
from helpers.upstream_stub import Brightness
from htgrpo_ext.train import native


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("htgrpo", ["model.tuning=lora", "model.dtype=bfloat16"]),
        ("d1", ["model.tuning=full", "model.dtype=float32", "rollout.sampler=maskgit-amused"]),
    ],
)
def test_a_cycle_and_its_checkpoint(method, more, device, amused_folder, tmp_path, monkeypatch):
    """Rollout with guidance, pixels, scores and updates there; training goes on from what was saved."""
    monkeypatch.setattr("htgrpo_ext.rewards.mix.load_scorer", lambda term, device: Brightness())
    settings = settings_of(method, amused_folder, tmp_path / "run", "eval=null", *more)
    for resume in (False, True):
        loop = native.start(settings, resume=resume)
        with loop.run.progress:
            native.train_cycle(loop, loop.cycles_done)
            loop.save()
        loop.run.log.close()
        assert {p.device.type for p in loop.backbone.model.parameters()} == {torch.device(device).type}
    updates = records(tmp_path / "run", "update")
    assert len(updates) == 4 and updates[0]["ratio_max"] == pytest.approx(1.0, abs=1e-2)
    assert all(math.isfinite(value) for update in updates for value in update.values() if isinstance(value, float))
