"""The run's folder: whose it is, one run at a time, and what a run may be continued as."""

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from helpers.micro_runs import tiny_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.train.folder import MARKER, held_folder
from htgrpo_ext.workflow.train import train

pytestmark = pytest.mark.usefixtures("reward_with_spread")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nothing_loads(monkeypatch) -> None:
    def loaded(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("htgrpo_ext.train.native.load_backbone", loaded)


@pytest.mark.parametrize("resume", [False, True])
def test_somebody_elses_folder_is_refused_and_left_alone(resume, checkpoint, tmp_path, monkeypatch):
    nothing_loads(monkeypatch)
    out = tmp_path / "thesis"
    (out / "eval").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "eval/results.csv"):
        (out / name).write_text("mine\n")
    before = contents(out)
    with pytest.raises(
        UserError, match=f"^{out}: there are files, but no run .*give another `out`, or an empty folder$"
    ):
        train(tiny_settings("htgrpo", checkpoint, out), resume=resume)
    assert contents(out) == before


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_loaded(checkpoint, tmp_path, monkeypatch):
    nothing_loads(monkeypatch)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300), Path("/proc/htgrpo")):
        with pytest.raises(UserError, match=r"cannot hold a run \(.*\); give another `out`$"):
            train(tiny_settings("htgrpo", checkpoint, out))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="no micro checkpoint there"):
        train(tiny_settings("htgrpo", tmp_path / "nowhere", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def _hold(settings, at_work, finish) -> None:
    with held_folder(settings, "native"):
        at_work.set()
        finish.wait()


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(checkpoint, tmp_path, monkeypatch):
    settings = tiny_settings("htgrpo", checkpoint, tmp_path / "run")
    context = multiprocessing.get_context("fork")
    at_work, finish = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(settings, at_work, finish))
    first.start()
    at_work.wait()
    with pytest.raises(UserError, match=rf"another run is at work there \(process {first.pid} on .*\); give another"):
        train(settings)
    assert set(contents(settings.folder)) == {MARKER}
    first.kill()  # a kill -9 leaves no lock behind
    first.join()
    train(settings)


def test_resuming_where_nothing_is_says_so_and_starts(checkpoint, tmp_path, capfd):
    settings = tiny_settings("htgrpo", checkpoint, tmp_path / "run")
    train(settings, resume=True)
    assert (
        f"{settings.folder}: no checkpoint to resume from, so the run starts at its first cycle"
        in capfd.readouterr().out
    )


def test_fewer_cycles_than_were_done_are_refused_and_nothing_is_rewritten(checkpoint, tmp_path, monkeypatch):
    folder = train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", "loop.cycles=2"))
    before = contents(folder)
    nothing_loads(monkeypatch)
    with pytest.raises(UserError, match="has done 2 cycles, more than loop.cycles 1; set loop.cycles to 2 or more$"):
        train(tiny_settings("htgrpo", checkpoint, folder, "loop.cycles=1"), resume=True)
    after = contents(folder)
    assert {name: after[name] for name in before if name != MARKER} == {k: v for k, v in before.items() if k != MARKER}


def test_a_run_of_the_other_loop_is_refused(checkpoint, tmp_path):
    folder = train(tiny_settings("htgrpo", checkpoint, tmp_path / "run"))
    with pytest.raises(UserError, match="the run there was made by --loop native"):
        train(tiny_settings("htgrpo", checkpoint, folder), "upstream", resume=True)


def test_a_stray_folder_beside_the_checkpoints_is_left_alone(checkpoint, tmp_path):
    settings = tiny_settings("htgrpo", checkpoint, tmp_path / "run", "loop.cycles=2")
    train(tiny_settings("htgrpo", checkpoint, tmp_path / "run"))
    for name in ("cycle-backup", "cycle-2.old"):
        (settings.folder / "checkpoints" / name).mkdir()
    folder = train(settings, resume=True)
    assert {"cycle-backup", "cycle-2.old", "cycle-000002"} <= set(os.listdir(folder / "checkpoints"))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_base_evaluation_that_cannot_be_read_is_made_again(damage, checkpoint, tmp_path):
    folder = train(tiny_settings("htgrpo", checkpoint, tmp_path / "run"))
    with np.load(folder / "eval" / "base.npz") as arrays:
        whole = {name: arrays[name] for name in arrays.files}
    (folder / "eval" / "base.npz").write_bytes(damage((folder / "eval" / "base.npz").read_bytes()))
    train(tiny_settings("htgrpo", checkpoint, folder, "loop.cycles=2"), resume=True)
    with np.load(folder / "eval" / "base.npz") as arrays:
        assert all(np.array_equal(arrays[name], value) for name, value in whole.items())


def test_torn_lines_of_the_log_are_dropped_on_resume(checkpoint, tmp_path):
    folder = train(tiny_settings("htgrpo", checkpoint, tmp_path / "run"))
    log = folder / "metrics.jsonl"
    whole = log.read_text()
    log.write_bytes(whole.encode() + b'{"kind": "update", "cyc\n\xff\xfe')
    train(tiny_settings("htgrpo", checkpoint, folder, "loop.cycles=2"), resume=True)
    assert log.read_text().startswith(whole)
    assert all(json.loads(line) for line in log.read_text().splitlines())


# --- wandb ----------------------------------------------------------------------------------------------------


def test_a_wandb_that_is_not_installed_is_said_before_a_model_is_loaded(checkpoint, tmp_path, monkeypatch):
    nothing_loads(monkeypatch)
    monkeypatch.setattr("htgrpo_ext.train.log.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^log.wandb is on, but wandb is not installed \(pip install wandb\)$"):
        train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", "log.wandb=true"))


def test_a_resumed_run_keeps_its_wandb_run(checkpoint, tmp_path, monkeypatch):
    opened = []

    class Wandb:
        def init(self, id=None, **given):
            opened.append((id, given.get("resume")))
            self.id = id or f"run{len(opened)}"
            return self

        def log(self, *_, **__):
            pass

        finish = log

    monkeypatch.setattr("htgrpo_ext.train.log.find_spec", lambda name: object())
    monkeypatch.setitem(__import__("sys").modules, "wandb", Wandb())
    train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", "log.wandb=true"))
    train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", "log.wandb=true", "loop.cycles=2"), resume=True)
    assert opened == [(None, None), ("run1", "allow")]
