"""What stops a run in MaskGRPO's loop, and what is skipped there: the same as in the native loop."""

import math
import os
import socket
import subprocess
import sys
from itertools import count

import pytest
import torch
from safetensors.torch import load_file

from helpers.micro_runs import even_codes, records, tiny_settings
from helpers.paths import CONFIGS, HELPERS, PYTHONPATH
from helpers.upstream_runs import needs_upstream, run_python
from htgrpo_ext.config import save_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.maskgrpo.extension import Extension
from htgrpo_ext.maskgrpo.launch import checkpoints_of
from htgrpo_ext.workflow.train import train

pytestmark = [*needs_upstream, pytest.mark.usefixtures("reward_with_spread")]
SCORE = "htgrpo_ext.rewards.scorers.micro.score_codes"
RARELY = "loop.save_steps=100"


def settings_of(checkpoint, out, *more: str):
    """K = 2 updates of two micro-batches a cycle, adapters."""
    return tiny_settings("htgrpo", checkpoint, out, "model.tuning=lora", "model.lora.rank=4", RARELY, *more)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "model").glob("*.safetensors")))


def saved(settings) -> list[int]:
    return [cycle for cycle, _ in checkpoints_of(settings)]


@pytest.mark.parametrize(
    ("name", "code", "moment", "number", "cycles"),
    [
        ("SIGTERM", 143, "rollout", 5, 2),  # the first of two micro-batches of cycle 3: two cycles are whole
        ("SIGINT", 130, "update", 5, 3),  # the first of two updates of cycle 3, which is finished
    ],
)
def test_a_signal_saves_whole_cycles_and_the_run_resumes_to_the_same_numbers(
    name, code, moment, number, cycles, checkpoint, tmp_path
):
    settings, file = settings_of(checkpoint, tmp_path / "run", "loop.cycles=4"), tmp_path / "run.yaml"
    save_settings(settings, file)
    command = [sys.executable, str(HELPERS / "run_signalled.py"), name, moment, str(number), str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([*command, "--loop", "upstream"], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-3000:]
    where = f"{settings.folder}/checkpoints/checkpoint-{2 * cycles}"
    assert done.stderr.splitlines()[-1] == f"stopped by {name}; saved in {where}; --resume goes on from there"
    assert saved(settings) == [cycles]
    resumed = train(settings, "upstream", resume=True)
    whole = train(settings_of(checkpoint, tmp_path / "whole", "loop.cycles=4"), "upstream")
    assert records(resumed, "update") == records(whole, "update")
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(resumed).items())


def test_a_run_whose_rewards_fail_is_saved_before_it_stops(checkpoint, tmp_path, monkeypatch):
    calls = count()

    def dying(*given):
        if next(calls) >= 8:  # two rewards in two micro-batches: from the third cycle on
            raise ConnectionError("the server is gone")
        return even_codes(*given)

    monkeypatch.setattr(SCORE, dying)
    settings = settings_of(checkpoint, tmp_path / "run", "loop.cycles=5", "reward.on_failure=stop")
    with pytest.raises(
        UserError, match=r"the server is gone.*; saved in .*/checkpoint-4; --resume goes on from there$"
    ):
        train(settings, "upstream")
    assert saved(settings) == [2]


def test_checkpoints_are_also_written_by_time(checkpoint, tmp_path):
    settings = settings_of(checkpoint, tmp_path / "run", "loop.cycles=3", "loop.save_minutes=1.0e-9")
    train(settings, "upstream")
    assert saved(settings) == [2, 3]  # the newest two are kept


def test_updates_that_are_not_finite_are_skipped_and_counted_and_three_in_a_row_stop_the_run(
    checkpoint, tmp_path, monkeypatch
):
    original, calls = Extension.kept_share, count()
    # Micro-batches of cycle 1: 0 and 1, 2 and 3; the second update is skipped, then all from cycle 3 on.
    monkeypatch.setattr(
        Extension, "kept_share", lambda self: original(self) * (math.nan if (n := next(calls)) == 3 or n >= 8 else 1)
    )
    settings = settings_of(checkpoint, tmp_path / "run", "loop.cycles=9")
    with pytest.raises(UserError, match="^the last 4 updates were skipped.*saved in .*/checkpoint-8; --resume"):
        train(settings, "upstream")
    updates = records(settings.folder, "update")
    assert [u.get("skipped", False) for u in updates] == [False, True, False, False, True, True, True, True]
    assert updates[1]["loss"] is None
    assert [c.get("skipped_updates") for c in records(settings.folder, "cycle")] == [1, None, 2, 2]
    adapters = load_file(checkpoints_of(settings)[-1][1] / "adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in adapters.values())


def test_deepspeed_skips_on_all_processes_what_is_not_finite_on_one(checkpoint, tmp_path):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: make setup-upstream")
    settings, file = settings_of(checkpoint, tmp_path / "run", "rollout.prompts_per_cycle=4"), tmp_path / "run.yaml"
    save_settings(settings, file)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    config = str(CONFIGS / "accelerate" / "zero2-cpu.yaml")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", port)
    # Two micro-batches a step: the fourth loss is the second step's last.
    arguments = ("4", str(file), "--loop", "upstream")
    run_python(HELPERS / "run_spoiled.py", *arguments, launcher=launcher, environment={"DS_ACCELERATOR": "cpu"})
    assert [update.get("skipped", False) for update in records(settings.folder, "update")] == [False, True]


def test_a_cycle_without_a_scored_group_moves_no_weight_in_either_loop(checkpoint, tmp_path, monkeypatch):
    """Adam's momentum would move them, if a zero gradient were stepped on."""
    folders = []
    for loop in ("native", "upstream"):
        calls = count()

        def failing(*given, calls=calls):
            if next(calls) in range(4, 8):  # the second cycle
                raise ConnectionError("no answer")
            return even_codes(*given)

        monkeypatch.setattr(SCORE, failing)
        folders.append(train(settings_of(checkpoint, tmp_path / loop, "loop.cycles=3"), loop))
    assert [[u["step"] for u in records(folder, "update")] for folder in folders] == [[1, 2, 5, 6]] * 2
    ours, theirs = map(weights, folders)
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("file", ["optimizer.pt", "adapter_model.safetensors", "trainer_state.json", "complete"])
def test_a_damaged_checkpoint_is_refused_before_a_model_is_loaded(file, checkpoint, tmp_path, monkeypatch):
    settings = settings_of(checkpoint, tmp_path / "run")
    train(settings, "upstream")
    damaged = checkpoints_of(settings)[-1][1] / file
    damaged.write_bytes(damaged.read_bytes()[:-10])
    monkeypatch.setattr("htgrpo_ext.maskgrpo.launch.make_loop", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=f"checkpoint-2: {file} (was changed|cannot be read).*; remove this checkpoint"):
        train(settings, "upstream", resume=True)
