"""What a reproduction is said to cost, against numbers worked out by hand."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from helpers.paths import CONFIGS
from htgrpo_ext.config import load_settings
from htgrpo_ext.workflow.cost import painting_hours, print_cost, run_bytes, training_hours
from htgrpo_ext.workflow.plan import Device, plan
from htgrpo_ext.workflow.reproduce import Request, stages_of

ONE = Device("one", 1, 80 * 10**9, 1e15)


@pytest.fixture(scope="module")
def lumina():
    files = [CONFIGS / "model/lumina.yaml", CONFIGS / "method/htgrpo.yaml"]
    small = ["rollout.prompts_per_cycle=2", "rollout.rollouts_per_prompt=2", "rollout.steps=2", "loop.cycles=10"]
    return load_settings(files, [*small, "model.checkpoint=nowhere", "eval=null"])


def test_training_hours_are_the_plans_rows(lumina):
    planned = plan(lumina)
    # Rollout, first step: 2 prompts and the empty one, all images hidden. Second: 2 x 2 images, each also without its
    # prompt. Then one hidden row a prompt for the reference, and for each of 8 updates one with gradient.
    assert planned.rows == {"rollout": 3 + 8, "old": 0, "reference": 2, "new": 16}
    # A row with gradient costs 3 forwards: itself, the gradient of its inputs, and itself again by checkpointing. In
    # rollouts the last of 32 blocks and the head are computed where a token appears.
    # Each token is drawn with its prompt and without; the first step is shared.
    sizes, N = planned.sizes, 1024
    assert 2 * 4 * N - 4 * N < planned.rollout_positions < 2 * 4 * N
    flops = sizes.rollout_flops(11, planned.rollout_positions) + (2 + 3 * 16) * sizes.row_flops()
    assert 10.6 / 11 < sizes.rollout_flops(11, planned.rollout_positions) / (11 * sizes.row_flops()) < 1
    assert training_hours(lumina, ONE) == pytest.approx(10 * flops / (0.4 * 1e15) / 3600)


@pytest.mark.parametrize("sampler", ["emerge", "maskgit-constant"])
def test_painting_hours_count_both_passes_of_guidance(lumina, sampler):
    lumina = lumina.model_copy(update={"sampling": lumina.sampling.model_copy(update={"sampler": sampler, "steps": 3})})
    sizes = lumina.model.sizes()
    # cos 0 + cos 30 + cos 60 degrees of the tokens are masked before the three steps
    positions = 100 * 1024 * (1 if sampler == "emerge" else 1 + 0.75**0.5 + 0.5)
    hours = 2 * sizes.rollout_flops(300, round(positions)) / (0.4 * 1e15) / 3600
    assert painting_hours(lumina, sizes, 100, ONE) == pytest.approx(hours)


def test_disk_is_two_checkpoints_with_moments_and_the_model(lumina):
    # Rank 128 on 7 projections of 32 blocks of LLaDA-8B, 4,096 wide with 12,288 in the feed-forward, in float32.
    trained = 32 * 128 * (4 * (4096 + 4096) + 3 * (4096 + 12288))
    assert run_bytes(lumina.model.sizes()) == (2 * 3 + 1) * trained * 4


def test_everything_is_counted(tmp_path: Path):
    files, methods = [CONFIGS / "model/micro.yaml"], [[CONFIGS / f"method/{m}.yaml"] for m in ("htgrpo", "d1")]
    said = io.StringIO()
    stages = stages_of(Request(files, methods, 3, ["loop.cycles=7"], ["microeval"], [], tmp_path))
    print_cost(stages, Console(file=said, width=120))
    text = said.getvalue()
    assert "train htgrpo: 3 x 7 cycles" in text and "train d1: 3 x 7 cycles" in text
    # the base model and six runs, 240 prompts with 4 images of 128 x 128 pixels
    assert "generate: 7 sets, 6,720 images" in text and f"at most {6720 * 128 * 128 * 3 / 1e6:.1f} MB" in text
    assert "7 scorings" in text and "time is not estimated" in text
