"""Evaluation while training in MaskGRPO's loop: the native loop's curve, through a kill and in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.micro_runs import records, tiny_settings
from helpers.paths import HELPERS, PYTHONPATH
from helpers.upstream_runs import needs_upstream
from htgrpo_ext.benchmarks import MicroEval
from htgrpo_ext.config import save_settings
from htgrpo_ext.workflow.train import train

pytestmark = [*needs_upstream, pytest.mark.usefixtures("reward_with_spread", "five_prompts")]
EVERY = ("eval.every=2", "eval.images_per_prompt=2", "loop.cycles=3", "loop.save_steps=1", "loop.learning_rate=1.0e-2")


@pytest.fixture
def five_prompts(monkeypatch):
    monkeypatch.setattr(MicroEval, "held_out", lambda self, trained: self.prompts()[:5])


def settings_of(checkpoint: Path, out: Path, *more: str):
    return tiny_settings("htgrpo", checkpoint, out, *EVERY, "model.tuning=lora", "model.lora.rank=2", *more)


def timeless(folder: Path, kind: str) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records(folder, kind)]


def run(settings, *arguments: str, processes: int = 1) -> int:
    save_settings(settings, settings.folder.with_suffix(".yaml"))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(HELPERS / "run_held_out.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH, "WANDB_MODE": "disabled"}
    return subprocess.run(command, env=environment, capture_output=True, text=True).returncode


def test_it_is_the_native_loops_and_moves_nothing_and_survives_a_kill(checkpoint, tmp_path):
    native = train(settings_of(checkpoint, tmp_path / "native"))
    whole = train(settings_of(checkpoint, tmp_path / "whole"), "upstream")
    without = train(settings_of(checkpoint, tmp_path / "without", "eval.every=null"), "upstream")
    assert timeless(whole, "update") == timeless(without, "update")
    assert timeless(whole, "cycle") == timeless(without, "cycle")
    ours, theirs = timeless(native, "eval"), timeless(whole, "eval")
    assert [each["cycles_done"] for each in theirs] == [0, 2, 3]
    assert theirs[0] == ours[0]
    for a, b in zip(ours, theirs, strict=True):
        assert b["reward_mean"] == pytest.approx(a["reward_mean"], abs=1e-3)

    settings = settings_of(checkpoint, tmp_path / "killed")
    file = settings.folder.with_suffix(".yaml")
    assert run(settings, "picture", "2", str(file), "--loop", "upstream") == -9
    resumed = train(settings, "upstream", resume=True)
    for kind in ("eval", "update"):
        assert timeless(resumed, kind) == timeless(whole, kind)
    best = [json.loads((folder / "best/best.json").read_text()) for folder in (whole, resumed)]
    kept = [load_file(folder / "best/adapter_model.safetensors") for folder in (whole, resumed)]
    assert best[0] == best[1] and all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_two_processes_evaluate_as_one(checkpoint, tmp_path):
    one = train(settings_of(checkpoint, tmp_path / "one", "loop.micro_batches=1"), "upstream")
    settings = settings_of(checkpoint, tmp_path / "two", "loop.micro_batches=1")
    file = settings.folder.with_suffix(".yaml")
    assert run(settings, "never", "1", str(file), "--loop", "upstream", processes=2) == 0
    assert records(one, "eval")[0]["rewards"] == records(settings.folder, "eval")[0]["rewards"]
    assert [each["cycles_done"] for each in records(settings.folder, "eval")] == [0, 2, 3]
