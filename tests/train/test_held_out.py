"""Evaluation while training: it moves nothing, survives a kill and two processes alike, and keeps the best model."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.micro_runs import even_codes, records, tiny_settings
from helpers.paths import HELPERS, PYTHONPATH
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.benchmarks import MicroEval
from htgrpo_ext.config import load_settings, save_settings
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.errors import UserError
from htgrpo_ext.micro.decoder import decode_codes
from htgrpo_ext.pixels import to_levels
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.train import held_out
from htgrpo_ext.train.checkpoint import complete_checkpoints
from htgrpo_ext.workflow.sample import sample
from htgrpo_ext.workflow.train import train

pytestmark = pytest.mark.usefixtures("reward_with_spread")
SCORE = "htgrpo_ext.rewards.scorers.micro.score_codes"
EVERY = ("eval.every=2", "loop.cycles=5", "loop.save_steps=1", "loop.learning_rate=1.0e-2")
LORA = ("model.tuning=lora", "model.lora.rank=2", "model.lora.dropout=0")
FIVE = 5  # held-out prompts: they do not divide by two processes


def settings_of(checkpoint: Path, out: Path, *more: str):
    return tiny_settings("htgrpo", checkpoint, out, *EVERY, *LORA, "eval.images_per_prompt=2", *more)


def timeless(folder: Path, kind: str) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records(folder, kind)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory):
    """A run on five held-out prompts that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SCORE, even_codes)
        patch.setattr(MicroEval, "held_out", lambda self, trained: self.prompts()[:FIVE])
        state = torch.random.get_rng_state()
        folder = train(settings_of(checkpoint, tmp_path_factory.mktemp("held-out") / "whole"))
        assert torch.equal(torch.random.get_rng_state(), state)
    return folder


def run(settings, moment: str = "never", number: int = 1, processes: int = 1, resume: bool = False) -> int:
    save_settings(settings, settings.folder.with_suffix(".yaml"))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(HELPERS / "run_held_out.py")]
    command += [moment, str(number), str(settings.folder.with_suffix(".yaml")), *(["--resume"] if resume else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, -9, 1), done.stderr[-3000:]
    return done.returncode


def test_it_moves_no_number_of_the_training(whole, checkpoint, tmp_path):
    without = train(settings_of(checkpoint, tmp_path / "without", "eval.every=null"))
    assert records(without, "eval") == [] and not (without / "best").exists()
    for kind in ("update", "cycle"):
        assert timeless(whole, kind) == timeless(without, kind)
    assert same(weights(whole / "model"), weights(without / "model"))


def test_it_is_made_before_training_every_so_many_cycles_and_after(whole):
    evaluations = records(whole, "eval")
    assert [each["cycles_done"] for each in evaluations] == [0, 2, 4, 5]
    kinds = [json.loads(line)["kind"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert kinds[0] == kinds[-1] == "eval" and kinds.count("cycle") == 5
    for each in evaluations:
        rewards = np.array(each["rewards"])
        assert rewards.shape == (FIVE, 2) and (each["images"], each["lost_images"]) == (10, 0)
        assert each["reward_mean"] == pytest.approx(rewards.mean(), abs=1e-6)
        assert each["reward_std"] == pytest.approx(rewards.std(ddof=1), abs=1e-6)
        assert each["reward_mean"] == pytest.approx(0.5 * each["verdict_mean"] + 0.5 * each["partial_mean"], abs=1e-6)
        assert 0 <= each["correct"] <= 1


def test_the_first_point_and_its_pictures_are_the_base_models(whole):
    """Repeated by hand: one prompt, from the checkpoint, under the noise of its place."""
    settings = load_settings([whole / "config.yaml"])
    backbone = load_backbone(settings.model, "cpu", frozen=True)
    prompt = settings.benchmark.prompts()[3]["prompt"]
    forward = SharedForward(backbone.image_logits, backbone.mask_id, 1)
    draws = Draws(settings.eval.seed, "held out", [3], 2)
    with torch.no_grad():
        codes_BN = generate(backbone, forward, backbone.encode_prompts([prompt] * 2), draws, settings.rollout).codes_BN
    assert records(whole, "eval")[0]["rewards"][3] == pytest.approx((codes_BN % 2 == 0).float().mean(-1).tolist())
    with Image.open(whole / "eval/pictures/cycle-000000.png") as row:
        assert row.size == (FIVE * 128, 128) and row.text["prompt 4"] == prompt
        shown = np.array(row)[:, 3 * 128 : 4 * 128]
    assert np.array_equal(shown, to_levels(decode_codes(codes_BN[:1]))[0].permute(1, 2, 0).numpy())


def test_the_noise_depends_on_the_evaluations_seed_alone(whole, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(MicroEval, "held_out", lambda self, trained: self.prompts()[:FIVE])
    short = ("loop.cycles=1", "loop.batch_size=7", "loop.micro_batches=1")  # other rows at once, too
    other, noise = (train(settings_of(checkpoint, tmp_path / s, *short, s)) for s in ("seed=9", "eval.seed=9"))
    rewards = [records(folder, "eval")[0]["rewards"] for folder in (whole, other, noise)]
    assert rewards[0] == rewards[1] != rewards[2]


def test_the_best_trained_model_is_kept_as_an_adapter_folder(whole, tmp_path):
    about = json.loads((whole / "best/best.json").read_text())
    trained = {each["cycles_done"]: each["reward_mean"] for each in records(whole, "eval")[1:]}
    assert trained[about["cycles_done"]] == about["reward_mean"] == max(trained.values())
    last = same(weights(whole / "best"), weights(whole / "model"))
    assert last == (about["cycles_done"] == 5)
    settings = load_settings([whole / "config.yaml"])
    (picture,) = sample(settings, ["a red star in the snow"], 1, 0, tmp_path / "out", adapter=whole / "best")
    assert picture.exists()
    summary = json.loads((whole / "summary.json").read_text())["held_out"]
    assert summary["best"] == about and summary["before"] == records(whole, "eval")[0]["reward_mean"]
    first, last = (np.array(records(whole, "eval")[i]["rewards"]) for i in (0, -1))
    assert summary["gain"] == pytest.approx((last - first).mean())
    assert summary["gain_interval"][0] <= summary["gain"] <= summary["gain_interval"][1]


@pytest.mark.parametrize(
    ("moment", "number"), [("picture", 2), ("best", 2)], ids=["before a record", "between two bests"]
)
def test_a_run_killed_while_it_evaluates_resumes_to_the_same_curve_and_best(
    moment, number, whole, checkpoint, tmp_path, monkeypatch
):
    settings = settings_of(checkpoint, tmp_path / "killed")
    rising = [each["reward_mean"] for each in records(whole, "eval")[1:]]
    if (moment, number) == ("best", 2) and rising[0] >= max(rising):
        pytest.skip("the first evaluation stays the best")
    assert run(settings, moment, number) == -9
    monkeypatch.setattr(MicroEval, "held_out", lambda self, trained: self.prompts()[:FIVE])
    assert_same_run(train(settings, resume=True), whole)


def assert_same_run(folder: Path, whole: Path) -> None:
    for kind in ("eval", "update"):
        assert timeless(folder, kind) == timeless(whole, kind)
    assert json.loads((folder / "best/best.json").read_text()) == json.loads((whole / "best/best.json").read_text())
    assert same(weights(folder / "best"), weights(whole / "best"))
    pictures = [sorted((f / "eval/pictures").glob("*")) for f in (folder, whole)]
    assert [path.name for path in pictures[0]] == [path.name for path in pictures[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*pictures, strict=True))
    assert not list(folder.glob(".best*"))


def test_two_processes_evaluate_as_one_and_resume_after_a_kill(whole, checkpoint, tmp_path):
    """Five prompts on two processes: one paints two of them, and one more that does not count."""
    settings = settings_of(checkpoint, tmp_path / "two", "loop.micro_batches=1")
    assert run(settings, "picture", 2, processes=2) == 1
    assert run(settings, processes=2, resume=True) == 0
    ours, theirs = records(whole, "eval"), records(settings.folder, "eval")
    assert [each["cycles_done"] for each in theirs] == [0, 2, 4, 5]
    assert theirs[0]["rewards"] == ours[0]["rewards"] and theirs[0]["correct"] == ours[0]["correct"]
    for a, b in zip(ours, theirs, strict=True):
        assert b["images"] == 10 and b["reward_mean"] == pytest.approx(a["reward_mean"], abs=0.02)
    assert (settings.folder / "best/best.json").exists()


def test_every_place_is_painted_once_and_all_processes_paint_equally_many():
    for count in (1, 4, 5, 8):
        for processes in (1, 2, 3, 8):
            states = [SimpleNamespace(process_index=rank, num_processes=processes) for rank in range(processes)]
            shares = [held_out._share(count, SimpleNamespace(processes=state)) for state in states]
            assert len({len(share) for share in shares}) == 1
            places = [place for share in shares for place in share]
            assert places[:count] == list(range(count)) and set(places[count:]) <= {count - 1}


# --- rewards that fail -----------------------------------------------------------------------------------------


def failing_at_cycle_2(monkeypatch, lost):
    """In the evaluation after cycle 2, a batch's images that are `lost` get NaN as their score."""
    evaluate, on = held_out._evaluate, []

    def watched(run, section, backbone, cycles_done):
        if cycles_done == 2:
            on.append(True)
        evaluate(run, section, backbone, cycles_done)
        on.clear()

    def score(prompts, codes_BN, names):
        bad_B = torch.tensor([bool(on) and lost(b) for b in range(len(prompts))])
        return {k: v.masked_fill(bad_B, math.nan) for k, v in even_codes(prompts, codes_BN, names).items()}

    monkeypatch.setattr(held_out, "_evaluate", watched)
    monkeypatch.setattr(SCORE, score)


def test_an_image_that_no_reward_scored_is_counted_and_the_training_goes_on(checkpoint, tmp_path, monkeypatch, capsys):
    undisturbed = train(settings_of(checkpoint, tmp_path / "undisturbed", "loop.cycles=3"))
    failing_at_cycle_2(monkeypatch, lambda b: b == 0)
    folder = train(settings_of(checkpoint, tmp_path / "run", "loop.cycles=3"))
    assert timeless(folder, "update") == timeless(undisturbed, "update")
    whole, lossy = records(undisturbed, "eval")[1], records(folder, "eval")[1]
    lost = lossy["lost_images"]
    assert 0 < lost < 12 and "reward verdict" in lossy["failure"]
    kept = [(a, b) for x, y in zip(whole["rewards"], lossy["rewards"], strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(b is None for _, b in kept) == lost and all(b in (a, None) for a, b in kept)
    assert lossy["reward_mean"] == pytest.approx(np.mean([b for _, b in kept if b is not None]), abs=1e-6)
    assert json.loads((folder / "best/best.json").read_text())["cycles_done"] == 3  # the other cannot be compared
    said = f"{lost} of 36 held-out images were not scored, because a reward failed"
    assert said in (folder / "report.html").read_text() and f"warning: {said}" in capsys.readouterr().out


def test_where_a_failure_stops_the_run_it_is_saved_and_the_evaluation_made_up_for(checkpoint, tmp_path, monkeypatch):
    settings = settings_of(
        checkpoint, tmp_path / "run", "loop.cycles=3", "loop.save_steps=100", "reward.on_failure=stop"
    )
    with pytest.MonkeyPatch.context() as patch:
        failing_at_cycle_2(patch, lambda b: True)
        with pytest.raises(UserError, match=r"on_failure is stop\); saved in .*cycle-000002; --resume"):
            train(settings)
    assert [cycle for cycle, _ in complete_checkpoints(settings.folder / "checkpoints")] == [2]
    assert [each["cycles_done"] for each in records(settings.folder, "eval")] == [0]
    train(settings, resume=True)
    assert [each["cycles_done"] for each in records(settings.folder, "eval")] == [0, 2, 3]


def test_a_second_run_in_a_folder_begins_with_no_best(checkpoint, tmp_path, whole):
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints")
    (folder / "best/best.json").write_text(json.dumps({"cycles_done": 4, "reward_mean": 9.0}))
    train(settings_of(checkpoint, folder, "loop.cycles=1"))
    assert json.loads((folder / "best/best.json").read_text())["cycles_done"] == 1


def test_a_signal_during_an_evaluation_stops_it_and_is_no_loss(checkpoint, tmp_path, monkeypatch, whole):
    monkeypatch.setattr(MicroEval, "held_out", lambda self, trained: self.prompts()[:FIVE])
    settings = settings_of(checkpoint, tmp_path / "run", "loop.save_steps=100")
    with pytest.MonkeyPatch.context() as patch:
        share = held_out._share

        def interrupted(count, run):
            if run.log.evaluated == {0}:
                os.kill(os.getpid(), 15)
            return share(count, run)

        patch.setattr(held_out, "_share", interrupted)
        with pytest.raises(Exception, match="^stopped by SIGTERM; saved in .*cycle-000002"):
            train(settings)
    assert_same_run(train(settings, resume=True), whole)
