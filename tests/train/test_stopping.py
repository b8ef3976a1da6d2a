"""What stops a run on purpose: signals, failing rewards, numbers that are not finite. The weights are saved first."""

import math
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch

from helpers.micro_runs import even_codes, records, tiny_settings
from helpers.paths import HELPERS, PYTHONPATH
from htgrpo_ext.config import save_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.train import native
from htgrpo_ext.train.checkpoint import complete_checkpoints, read_checkpoint
from htgrpo_ext.train.guard import StepGuard, WeightsLost
from htgrpo_ext.workflow.train import train

pytestmark = pytest.mark.usefixtures("reward_with_spread")
SCORE = "htgrpo_ext.rewards.scorers.micro.score_codes"
RARELY = "loop.save_steps=100"


def saved(folder: Path) -> list[int]:
    return [cycle for cycle, _ in complete_checkpoints(folder / "checkpoints")]


def signalled(name: str, moment: str, number: int, settings) -> subprocess.CompletedProcess:
    file = settings.folder.with_suffix(".yaml")
    save_settings(settings, file)
    command = [sys.executable, str(HELPERS / "run_signalled.py"), name, moment, str(number), str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "code", "moment", "number", "cycles"),
    [
        ("SIGTERM", 143, "rollout", 6, 2),  # the second of two micro-batches of cycle 3: two cycles are whole
        ("SIGINT", 130, "update", 5, 3),  # the first of two updates of cycle 3, which is finished
        ("SIGTERM", 143, "rollout", 1, 0),
    ],
)
def test_a_signal_saves_whole_cycles_and_the_run_resumes_to_the_same_numbers(
    name, code, moment, number, cycles, checkpoint, tmp_path
):
    more = ("loop.cycles=4", RARELY)
    settings = tiny_settings("htgrpo", checkpoint, tmp_path / "run", *more)
    done = signalled(name, moment, number, settings)
    assert done.returncode == code, done.stderr
    notice, last = done.stderr.splitlines()
    assert notice == f"{name}: the run stops after this cycle; a second {name} stops it at once"
    where = f"saved in {settings.folder}/checkpoints/cycle-{cycles:06d}; --resume goes on from there"
    assert last == f"stopped by {name}; {where if cycles else 'nothing was trained yet'}"
    assert saved(settings.folder) == ([cycles] if cycles else [])
    resumed = train(settings, resume=True)
    whole = train(tiny_settings("htgrpo", checkpoint, tmp_path / "whole", *more))
    assert records(resumed, "update") == records(whole, "update")


def test_a_signal_while_the_model_is_evaluated_stops_at_once(checkpoint, tmp_path, monkeypatch):
    def interrupted(*_):
        os.kill(os.getpid(), 2)

    monkeypatch.setattr("htgrpo_ext.workflow.train.evaluate", interrupted)
    with pytest.raises(Exception, match="^stopped by SIGINT; nothing was trained yet$") as stop:
        train(tiny_settings("htgrpo", checkpoint, tmp_path / "run"))
    assert stop.value.signum == 2


@pytest.mark.parametrize("setting", ["reward.on_failure=stop", "reward.max_failed_share=0.01"])
def test_a_run_whose_rewards_fail_is_saved_before_it_stops(setting, checkpoint, tmp_path, monkeypatch):
    calls = count()

    def dying(*given):
        if next(calls) >= 8:  # two rewards in two micro-batches: from the third cycle on
            raise ConnectionError("the server is gone")
        return even_codes(*given)

    settings = tiny_settings("htgrpo", checkpoint, tmp_path / "run", "loop.cycles=5", RARELY, setting)
    monkeypatch.setattr(SCORE, dying)
    with pytest.raises(
        UserError, match=r"the server is gone.*; saved in .*/cycle-000002; --resume goes on from there$"
    ):
        train(settings)
    assert saved(settings.folder) == [2]
    monkeypatch.setattr(SCORE, even_codes)
    whole = train(tiny_settings("htgrpo", checkpoint, tmp_path / "whole", "loop.cycles=5", RARELY))
    assert records(train(settings, resume=True), "update") == records(whole, "update")


def test_an_error_after_a_cycles_last_update_saves_that_cycle(checkpoint, tmp_path, monkeypatch):
    """A decoder that is missing, say, when pictures are due."""
    original = native.save_pictures

    def failing(run, cycle, *given):
        if cycle == 1:
            raise UserError("no decoder")
        return original(run, cycle, *given)

    monkeypatch.setattr(native, "save_pictures", failing)
    settings = tiny_settings("htgrpo", checkpoint, tmp_path / "run", "loop.cycles=3", RARELY)
    with pytest.raises(UserError, match="^no decoder; saved in .*/cycle-000002; --resume"):
        train(settings)
    monkeypatch.setattr(native, "save_pictures", original)
    whole = train(tiny_settings("htgrpo", checkpoint, tmp_path / "whole", "loop.cycles=3", RARELY))
    assert records(train(settings, resume=True), "update") == records(whole, "update")


def test_checkpoints_are_also_written_by_time(checkpoint, tmp_path):
    for minutes, expected in (("1.0e-9", [2, 3]), ("null", [3])):  # the newest two are kept
        more = ("loop.cycles=3", RARELY, f"loop.save_minutes={minutes}")
        assert saved(train(tiny_settings("htgrpo", checkpoint, tmp_path / minutes, *more))) == expected


# --- numbers that are not finite ------------------------------------------------------------------------------


@pytest.fixture
def spoil(monkeypatch):
    """Makes losses NaN: `spoil(which)`, counted from 0 over micro-batches and updates."""

    def choose(which):
        calls, original = count(), native.update_objective

        def spoiled(*given):
            result = original(*given)
            return result._replace(loss=result.loss * math.nan) if which(next(calls)) else result

        monkeypatch.setattr(native, "update_objective", spoiled)

    return choose


def test_an_update_that_is_not_finite_is_skipped_and_counted(spoil, checkpoint, tmp_path):
    spoil(lambda call: call == 3)  # the second micro-batch of the second update
    folder = train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", "loop.cycles=2"))
    updates = records(folder, "update")
    assert [update.get("skipped", False) for update in updates] == [False, True, False, False]
    assert updates[1]["loss"] is None and updates[1]["grad_norm"] is None  # JSON has no NaN
    assert [cycle.get("skipped_updates") for cycle in records(folder, "cycle")] == [1, None]
    weights = read_checkpoint(folder / "checkpoints" / "cycle-000002").weights
    assert all(weight.isfinite().all() for weight in weights.values())


def test_skipped_updates_in_a_row_stop_the_run(spoil, checkpoint, tmp_path):
    spoil(lambda call: call >= 6)  # from the second update of the second cycle on: 1, then 2 skipped ones
    settings = tiny_settings("htgrpo", checkpoint, tmp_path / "run", "loop.cycles=9", RARELY)
    with pytest.raises(UserError, match="^the last 3 updates were skipped.*saved in .*/cycle-000003; --resume"):
        train(settings)
    assert saved(settings.folder) == [3]


@pytest.mark.parametrize("cause", ["loss", "rewards"])
def test_a_run_without_a_single_update_fails(cause, spoil, checkpoint, tmp_path, monkeypatch):
    def failing(*_):
        raise ConnectionError("no answer")

    if cause == "loss":
        spoil(lambda call: True)
    else:
        monkeypatch.setattr(SCORE, failing)
    with pytest.raises(UserError, match="^no update was made: every group was lost .*metrics.jsonl; saved in"):
        train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", "reward.max_failed_share=1"))
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_a_skipped_step_changes_neither_weights_nor_moments(what, bad):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer, guard = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1), StepGuard()
    guard.protect(optimizer)

    def step(gradient, loss=0.0):
        weight.grad = torch.tensor(gradient)
        guard.watch(torch.tensor(loss))
        optimizer.step()
        return guard.close_step()

    assert step([1.0, -1.0]) == "taken"
    before = weight.detach().clone(), {key: value.clone() for key, value in optimizer.state[weight].items()}
    assert (step([bad, 1.0]) if what == "gradient" else step([1.0, 1.0], bad)) == "skipped"
    assert torch.equal(weight, before[0])
    assert all(torch.equal(value, before[1][key]) for key, value in optimizer.state[weight].items())
    assert step([1.0, -1.0]) == "taken" and not torch.equal(weight, before[0])
    assert guard.close_cycle() == 1 and guard.close_cycle() == 0


def test_what_is_not_finite_on_one_process_is_skipped_on_all(checkpoint, tmp_path):
    settings, file = (
        tiny_settings("htgrpo", checkpoint, tmp_path / "run", "rollout.prompts_per_cycle=4"),
        tmp_path / "f",
    )
    save_settings(settings, file)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, str(HELPERS / "run_spoiled.py"), "2", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [update.get("skipped", False) for update in records(settings.folder, "update")] == [False, True]


def test_a_step_that_makes_weights_infinite_stops_the_run():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer, guard = torch.optim.SGD([weight], lr=3e38), StepGuard()
    guard.protect(optimizer)
    weight.grad = torch.tensor([10.0, 0.0])
    with pytest.raises(WeightsLost, match="weights that are not finite"):
        optimizer.step()


def test_weights_that_are_lost_are_not_saved(checkpoint, tmp_path, monkeypatch):
    settings = tiny_settings("htgrpo", checkpoint, tmp_path / "run", "loop.cycles=3", "loop.save_steps=1")
    steps, original = count(1), native.optimizer_step

    def losing(*given):
        if next(steps) == 4:
            raise WeightsLost("lost")
        return original(*given)

    monkeypatch.setattr(native, "optimizer_step", losing)
    with pytest.raises(UserError, match="^lost; saved in .*/cycle-000001; --resume"):
        train(settings)
    assert saved(settings.folder) == [1]
