"""The native loop: every method, first ratios, accumulation, resume after a kill, one process against two."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.micro_runs import CONFIGS, records, tiny_overrides, tiny_settings
from helpers.paths import PYTHONPATH
from htgrpo_ext.errors import UserError
from htgrpo_ext.report.folder import read_rollout
from htgrpo_ext.train.checkpoint import complete_checkpoints
from htgrpo_ext.workflow.train import train

pytestmark = pytest.mark.usefixtures("reward_with_spread")
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
LORA = ("model.tuning=lora", "model.lora.rank=2", "model.lora.dropout=0.5")
BUDGET = "method.budget={global: 1, structure: 1, refinement: 0}"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "model").glob("*.safetensors")))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_its_first_ratio_is_exactly_one(method, checkpoint, tmp_path):
    folder = train(tiny_settings(method, checkpoint, tmp_path / "run", "rollout.prompts_per_cycle=4"))
    updates = records(folder, "update")
    assert len(updates) == 2
    assert updates[0]["ratio_mean"] == updates[0]["ratio_max"] == 1.0
    assert updates[0]["kl"] == 0.0
    assert updates[1]["ratio_max"] != 1.0
    assert all(math.isfinite(value) for u in updates for value in u.values() if isinstance(value, float))
    before, after = load_file(checkpoint / "model.safetensors"), weights_of(folder)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["gain"] == pytest.approx(summary["trained"]["overall"] - summary["base"]["overall"])
    assert (folder / "report.html").exists()


def test_the_base_models_evaluation_is_taken_from_another_run_of_the_same_base_only(checkpoint, tmp_path, monkeypatch):
    import htgrpo_ext.workflow.train as workflow

    asked, evaluate = [], workflow.evaluate
    monkeypatch.setattr(workflow, "evaluate", lambda *given: asked.append(given[5]) or evaluate(*given))
    first = train(tiny_settings("d1", checkpoint, tmp_path / "first"))
    second = train(tiny_settings("htgrpo", checkpoint, tmp_path / "second", "seed=7"), base_of=first)
    third = train(tiny_settings("htgrpo", checkpoint, tmp_path / "third", "seed=7"))
    assert asked == ["base", "trained", "trained", "base", "trained"]
    for name in ("eval/base.npz", "eval/trained.npz"):
        with np.load(second / name) as taken, np.load(third / name) as own:
            assert all((taken[key] == own[key]).all() for key in own.files)
    with pytest.raises(UserError, match="first: the run there has another model, sampler or evaluation"):
        train(tiny_settings("d1", checkpoint, tmp_path / "other", "eval.seed=7"), base_of=first)
    (first / "eval/base.npz").write_bytes(b"")
    with pytest.raises(UserError, match="base.npz: no whole evaluation"):
        train(tiny_settings("d1", checkpoint, tmp_path / "other"), base_of=first)
    assert not (tmp_path / "other").exists()


def test_a_run_without_a_benchmark_is_not_evaluated_but_reported(checkpoint, tmp_path):
    folder = train(tiny_settings("d1", checkpoint, tmp_path / "run", "eval=null"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["base"] is None and summary["reward"] == [records(folder, "cycle")[0]["reward_mean"]] * 2
    assert (folder / "report.html").exists() and not (folder / "eval").exists()


def test_the_rollout_to_show_is_a_picture_with_its_grid_ranks_and_supports(checkpoint, tmp_path):
    folder = train(tiny_settings("htgrpo", checkpoint, tmp_path / "run"))
    rollout = read_rollout(folder)
    assert Image.open(io.BytesIO(rollout.picture)).size == (128, 128) and rollout.grid == (8, 8)
    assert sorted(rollout.rank_N) == list(range(1, 65)) and rollout.stages == ["global", "structure"]
    assert set(np.flatnonzero(rollout.supports_KN[1])) <= set(np.flatnonzero(rollout.rank_N <= 19))


def test_revealed_structure_trains(checkpoint, tmp_path):
    folder = train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", "method.context=reveal-structure"))
    assert records(folder, "update")[0]["ratio_max"] == 1.0


def test_the_loop_counts_one_forward_per_prompt_and_update(checkpoint, tmp_path):
    """K + 1 rows a prompt and cycle: 2 prompts x (2 new + 1 reference), no pass of its own for the old policy."""
    folder = train(tiny_settings("htgrpo", checkpoint, tmp_path / "run"))
    forwards = records(folder, "cycle")[0]["forwards"]
    assert {kind: forwards[kind] for kind in ("old", "reference", "new")} == {"old": 0, "reference": 2, "new": 4}


def test_lora_with_dropout_still_has_ratio_one_and_saves_adapters_only(checkpoint, tmp_path):
    folder = train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", *LORA))
    assert records(folder, "update")[0]["ratio_max"] == 1.0 and records(folder, "update")[0]["kl"] == 0.0
    assert all("lora_" in name for name in weights_of(folder))


def test_accumulation_does_not_change_what_is_learnt(checkpoint, tmp_path):
    whole = train(tiny_settings("htgrpo", checkpoint, tmp_path / "whole", "loop.micro_batches=1"))
    parts = train(tiny_settings("htgrpo", checkpoint, tmp_path / "parts", "loop.micro_batches=2"))
    for a, b in zip(records(whole, "update"), records(parts, "update"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


def test_training_leaves_the_global_generator_alone(checkpoint, tmp_path):
    state = torch.random.get_rng_state()
    train(tiny_settings("htgrpo", checkpoint, tmp_path / "run"))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_run_is_not_overwritten_without_resume(checkpoint, tmp_path):
    settings = tiny_settings("d1", checkpoint, tmp_path / "run")
    train(settings)
    with pytest.raises(UserError, match="--resume"):
        train(settings)


def test_a_run_is_not_continued_as_another_but_may_go_on_for_longer(checkpoint, tmp_path):
    train(tiny_settings("htgrpo", checkpoint, tmp_path / "run"))
    for method, setting, key in (
        ("htgrpo", "loop.learning_rate=0.5", "loop.learning_rate 0.001, not 0.5"),
        ("d1", "seed=0", "method.budget.global 1, not None"),
    ):
        with pytest.raises(UserError, match=key):
            train(tiny_settings(method, checkpoint, tmp_path / "run", setting), resume=True)
    folder = train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", "loop.cycles=2"), resume=True)
    assert [update["step"] for update in records(folder, "update")] == [1, 2, 3, 4]


def cli(arguments: list[str], launcher: tuple[str, ...] = (), kill_at_save: int | None = None) -> int:
    """Run `htgrpo train` in a process of its own; `kill_at_save` kills it -9 in the middle of that save."""
    program = (
        "import htgrpo_ext.rewards.scorers.micro as micro\nfrom helpers import micro_runs\n"
        "from htgrpo_ext.cli import main\n"
        "micro.score_codes = micro_runs.even_codes\n"
        "main()"
    )
    if kill_at_save is not None:
        program = (
            "import os, pathlib, signal\n"
            "rename, saves = pathlib.Path.rename, []\n"
            "def dying(self, target):\n"
            "    if 'partial-' in self.name:\n"
            "        saves.append(self)\n"
            f"        if len(saves) == {kill_at_save}: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return rename(self, target)\n"
            "pathlib.Path.rename = dying\n" + program
        )
    script = Path(arguments[-1].removeprefix("out=")).with_suffix(".py")
    script.write_text(program)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(
        [sys.executable, *launcher, str(script), "train", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode in (0, -9), done.stderr[-3000:]
    return done.returncode


def arguments(method: str, checkpoint: Path, out: Path, *more: str) -> list[str]:
    pairs = tiny_overrides(checkpoint, out, *((BUDGET,) if method == "htgrpo" else ()), *more, f"out={out}")
    sets = [part for pair in pairs for part in ("--set", pair)]
    return [str(CONFIGS / "model" / "micro.yaml"), str(CONFIGS / "method" / f"{method}.yaml"), *sets]


@pytest.mark.parametrize("more", [(), LORA], ids=["full", "lora"])
def test_a_run_killed_in_the_middle_of_a_save_resumes_to_the_same_numbers(more, checkpoint, tmp_path):
    more = ("loop.cycles=4", "loop.save_steps=1", *more)
    whole = train(tiny_settings("htgrpo", checkpoint, tmp_path / "whole", *more))
    killed = tmp_path / "killed"
    assert cli(arguments("htgrpo", checkpoint, killed, *more), kill_at_save=3) == -9
    assert [cycle for cycle, _ in complete_checkpoints(killed / "checkpoints")] == [1, 2]
    resumed = train(tiny_settings("htgrpo", checkpoint, killed, *more), resume=True)
    assert records(resumed, "update") == records(whole, "update")
    a, b = weights_of(whole), weights_of(resumed)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    base, trained = ((f / "eval" / "trained.npz").read_bytes() for f in (whole, resumed))
    assert base == trained


def test_two_processes_learn_what_one_does(checkpoint, tmp_path):
    """gloo on the CPU, the same global batch: losses, rewards and evaluation of one process."""
    more = ("loop.cycles=2", "rollout.prompts_per_cycle=4")
    one = train(tiny_settings("htgrpo", checkpoint, tmp_path / "one", *more))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    assert cli(arguments("htgrpo", checkpoint, tmp_path / "two", *more), launcher) == 0
    two = tmp_path / "two"
    for a, b in zip(records(one, "update"), records(two, "update"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=2e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-3)
        assert b["ratio_max"] == pytest.approx(a["ratio_max"], rel=1e-3)
    for a, b in zip(records(one, "cycle"), records(two, "cycle"), strict=True):
        assert b["reward_mean"] == pytest.approx(a["reward_mean"], abs=1e-6)
        # What is shared within a prompt is shared on either; rows that two prompts share are not.
        assert b["forwards"]["new"] == a["forwards"]["new"]
    assert (one / "eval" / "prompts.json").read_text() == (two / "eval" / "prompts.json").read_text()
