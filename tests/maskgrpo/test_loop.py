"""Our methods in MaskGRPO's loop, held against the native loop on the micro model: the same world, two loops."""

import math
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from helpers.micro_runs import CONFIGS, even_codes, records, tiny_checkpoint, tiny_settings
from helpers.paths import HELPERS
from helpers.upstream_runs import needs_upstream, run_python
from htgrpo_ext.backbones import policy
from htgrpo_ext.config import save_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.train.run import prompt_sources
from htgrpo_ext.workflow.train import train

pytestmark = [*needs_upstream, pytest.mark.usefixtures("reward_with_spread")]
LORA = ("model.tuning=lora", "model.lora.rank=4")
K4 = ("loop.updates_per_rollout=4", "loop.cycles=2", "rollout.prompts_per_cycle=4")
BUDGET = "method.budget={global: 1, structure: 2, refinement: 1}"
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
SCRIPT = HELPERS / "run_upstream.py"


def settings_of(method: str, checkpoint: Path, out: Path, *more: str):
    """K = 4 in two cycles of four prompts, two micro-batches; HT-GRPO in the stages 1:2:1."""
    return tiny_settings(method, checkpoint, out, *K4, *((BUDGET,) if method == "htgrpo" else ()), *more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next((folder / "model").glob("*.safetensors")))


def assert_same_run(a: Path, b: Path, tolerance: float = 1e-5) -> None:
    """Every update's loss, gradient norm and metrics, every cycle's, and the weights that came out."""
    for kind in ("update", "cycle"):
        pairs = list(zip(records(a, kind), records(b, kind), strict=True))
        assert pairs
        for x, y in pairs:
            x.pop("seconds", None), y.pop("seconds", None)
            assert x.keys() == y.keys()
            for key, value in x.items():
                exact = isinstance(value, str | dict)
                assert y[key] == (value if exact else pytest.approx(value, abs=tolerance, rel=1e-4)), key
    before, after = weights(a), weights(b)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("more", [LORA, ("model.tuning=full",)], ids=["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_the_patched_loop_trains_as_the_reference_loop(method, more, checkpoint, tmp_path):
    """Two rollout cycles, two micro-batches: MaskGRPO's own formulas against core/objective, batch by batch."""
    ours = train(settings_of(method, checkpoint, tmp_path / "native", *more))
    theirs = train(settings_of(method, checkpoint, tmp_path / "upstream", *more), "upstream")
    assert_same_run(ours, theirs)
    assert (theirs / "report.html").exists()


def test_rollouts_that_are_not_exact_are_the_same_in_both_loops(checkpoint, tmp_path):
    more = ("rollout.guidance=2", "rollout.guidance_interval=[0.5, 1]", "rollout.reuse={refresh: 2}")
    ours = train(settings_of("htgrpo", checkpoint, tmp_path / "native", *more))
    theirs = train(settings_of("htgrpo", checkpoint, tmp_path / "upstream", *more), "upstream")
    assert_same_run(ours, theirs)
    assert records(theirs, "cycle")[0]["forwards"]["reused"] > 0


def test_compiled_blocks_train_the_same_in_both_loops(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "COMPILER", "aot_eager")
    for loop in ("native", "upstream"):
        torch._dynamo.reset()
        counters.clear()
        train(settings_of("htgrpo", checkpoint, tmp_path / loop, "loop.compile=default"), loop)
    assert records(tmp_path / "upstream", "cycle")[0].pop("compiled_graphs") > 0
    assert_same_run(tmp_path / "native", tmp_path / "upstream", tolerance=1e-4)


def test_stages_are_never_mixed_inside_an_optimizer_step(checkpoint, tmp_path, monkeypatch):
    """The index each micro-step trains, asked of the hook, against MaskGRPO's own, which it is handed."""
    hooked = {}
    for method in ("htgrpo", "maskgrpo"):
        pairs = hooked[method] = []

        def spy(loop, walked, pairs=pairs):
            pairs.append((walked, loop.extension.index))
            return pairs[-1][1]

        monkeypatch.setattr("htgrpo_ext.maskgrpo.hooks.update_index", spy)
        train(settings_of(method, checkpoint, tmp_path / method, *LORA), "upstream")
    assert [index for _, index in hooked["htgrpo"]] == [0, 0, 1, 1, 2, 2, 3, 3] * 2
    assert [walked for walked, _ in hooked["htgrpo"]] == [0, 1, 2, 3, 0, 1, 2, 3] * 2  # what it would have trained
    assert all(walked == index for walked, index in hooked["maskgrpo"])  # our model of the fault is the fault
    stages = [record["stage"] for record in records(tmp_path / "htgrpo", "update")]
    assert stages == ["global", "structure", "structure", "refinement"] * 2


def test_one_update_per_rollout_trains(checkpoint, tmp_path):
    more = ("loop.updates_per_rollout=1", "loop.cycles=3", "method.budget={global: 1, structure: 0, refinement: 0}")
    ours = train(tiny_settings("htgrpo", checkpoint, tmp_path / "native", *more))
    theirs = train(tiny_settings("htgrpo", checkpoint, tmp_path / "upstream", *more), "upstream")
    assert [record["ratio_max"] for record in records(theirs, "update")] == [1.0] * 3
    assert_same_run(ours, theirs)


def test_maskgrpo_fixed_differs_from_maskgrpo_just_where_the_faults_say(checkpoint, tmp_path):
    """With one micro-batch the index cannot walk, and only the loss mask is left to differ."""
    runs = {}
    for method in ("maskgrpo", "maskgrpo-fixed"):
        for parts in (1, 2):
            more = (*LORA, f"loop.micro_batches={parts}")
            runs[method, parts] = train(
                settings_of(method, checkpoint, tmp_path / f"{method}{parts}", *more), "upstream"
            )
    for parts in (1, 2):
        faulty, fixed = (records(runs[method, parts], "cycle")[0] for method in ("maskgrpo", "maskgrpo-fixed"))
        for key in ("reward_mean", "reward_std", "entropy_structure", "entropy_refinement"):
            assert faulty[key] == fixed[key]  # the same images
    faulty, fixed = (records(runs[method, 1], "update") for method in ("maskgrpo", "maskgrpo-fixed"))
    assert all(f["support"] == 64 > x["support"] for f, x in zip(faulty[:3], fixed[:3], strict=True))
    assert faulty[0]["ratio_max"] == fixed[0]["ratio_max"] == 1.0
    assert faulty[0]["grad_norm"] != fixed[0]["grad_norm"]
    # Whose pi_old is: a pass of its own, against the first update's forward.
    assert records(runs["maskgrpo", 1], "cycle")[0]["forwards"]["old"] > 0


@pytest.mark.parametrize("method", ["htgrpo", "maskgrpo-fixed", "unigrpo"])
def test_a_group_that_no_reward_scored_is_left_out_alike(method, checkpoint, tmp_path, monkeypatch):
    lost = prompt_sources(settings_of(method, checkpoint, tmp_path / "any")).cycle(0)[1]["prompt"]

    def failing(prompts, codes_BN, names):
        bad_B = torch.tensor([prompt["prompt"] == lost for prompt in prompts])
        return {
            name: values.masked_fill(bad_B, torch.nan) for name, values in even_codes(prompts, codes_BN, names).items()
        }

    monkeypatch.setattr("htgrpo_ext.rewards.scorers.micro.score_codes", failing)
    ours = train(settings_of(method, checkpoint, tmp_path / "native", *LORA))
    theirs = train(settings_of(method, checkpoint, tmp_path / "upstream", *LORA), "upstream")
    assert records(theirs, "cycle")[0]["failed_groups"] >= 1
    assert_same_run(ours, theirs)


@pytest.mark.parametrize("method", ["htgrpo", "tracegrpo"])
def test_a_resumed_run_goes_on_to_the_same_numbers(method, checkpoint, tmp_path):
    more = (*LORA, "loop.save_steps=1")
    whole = train(settings_of(method, checkpoint, tmp_path / "whole", *more), "upstream")
    train(settings_of(method, checkpoint, tmp_path / "parts", *more, "loop.cycles=1"), "upstream")
    with pytest.raises(UserError, match="--resume"):
        train(settings_of(method, checkpoint, tmp_path / "parts", *more), "upstream")
    # A kill in the middle of a save leaves a folder that was not written to its end: it is not taken.
    (tmp_path / "parts" / "checkpoints" / "checkpoint-7").mkdir()
    parts = train(settings_of(method, checkpoint, tmp_path / "parts", *more), "upstream", resume=True)
    assert records(parts, "update") == records(whole, "update")
    before, after = weights(whole), weights(parts)
    assert all(torch.equal(before[name], after[name]) for name in before)


def arguments(method: str, checkpoint: Path, out: Path, *more: str) -> list[str]:
    save_settings(settings_of(method, checkpoint, out, *more), out.with_suffix(".yaml"))
    return [str(out.with_suffix(".yaml")), "--loop", "upstream"]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.mark.parametrize("method", ["htgrpo", "unigrpo"])
def test_two_processes_learn_what_one_does(method, checkpoint, tmp_path):
    """Of methods that average over rollouts; MaskGRPO's average over tokens is over each process's own."""
    one = train(settings_of(method, checkpoint, tmp_path / "one", *LORA), "upstream")
    run_python(SCRIPT, *arguments(method, checkpoint, tmp_path / "two", *LORA), launcher=TORCHRUN)
    for a, b in zip(records(one, "update"), records(tmp_path / "two", "update"), strict=True):
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-3)
        assert b["loss"] == pytest.approx(a["loss"], abs=2e-5)
        assert b["ratio_max"] == pytest.approx(a["ratio_max"], rel=1e-3)
    for a, b in zip(records(one, "cycle"), records(tmp_path / "two", "cycle"), strict=True):
        assert b["reward_mean"] == pytest.approx(a["reward_mean"], abs=1e-6)


def test_deepspeed_zero2_on_two_processes_trains_two_cycles(checkpoint, tmp_path):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: make setup-upstream")
    one = train(settings_of("htgrpo", checkpoint, tmp_path / "one", *LORA), "upstream")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    config = str(CONFIGS / "accelerate" / "zero2-cpu.yaml")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", port)
    out = tmp_path / "zero2"
    run_python(
        SCRIPT,
        *arguments("htgrpo", checkpoint, out, *LORA),
        launcher=launcher,
        environment={"DS_ACCELERATOR": "cpu"},
    )
    updates = records(out, "update")
    assert len(updates) == 8
    assert all(math.isfinite(value) for u in updates for value in u.values() if isinstance(value, float))
    for a, b in zip(records(one, "update"), updates, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=2e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-3)


def test_a_reward_server_that_is_down_is_said_before_a_model_is_loaded(tmp_path):
    term = "reward.terms=[{name: stub, weight: 1, url: 'http://127.0.0.1:9'}]"
    (tiny_checkpoint(tmp_path / "model") / "model.safetensors").unlink()
    settings = settings_of("htgrpo", tmp_path / "model", tmp_path / "run", term)
    with pytest.raises(UserError, match="^reward stub: no server answers at http://127.0.0.1:9$"):
        train(settings, "upstream")
