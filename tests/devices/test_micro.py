"""The micro model on an accelerator: the native loop, every method, and how often the host waits in a cycle."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from helpers.micro_runs import records, tiny_settings
from helpers.pretend_accelerator import NAME, Waits, counted, total
from htgrpo_ext.train import native
from htgrpo_ext.train.checkpoint import read_checkpoint
from htgrpo_ext.workflow.diagnose import diagnose
from htgrpo_ext.workflow.diagnosis_settings import settings_of
from htgrpo_ext.workflow.generate import generate_set
from htgrpo_ext.workflow.sample import sample
from htgrpo_ext.workflow.train import train

# How often the host waits for the device in one cycle of a tiny run (2 micro-batches, 3 denoising steps, 2 updates): to
# read a number or a size from there, and to send numbers there. A change that lowers one writes it down here.
WAITS = {  # read, send
    "agrpo": (116, 26),
    "d1": (136, 26),
    "htgrpo": (112, 26),
    "maskgrpo": (132, 26),
    "maskgrpo-fixed": (134, 26),
    "tracegrpo": (116, 24),
    "unigrpo": (134, 27),
}
LORA = ("model.tuning=lora", "model.lora.rank=2")


@contextmanager
def started(method: str, checkpoint: Path, out: Path, *more: str) -> Iterator[native.NativeLoop]:
    """A tiny run that is ready to train."""
    loop = native.start(tiny_settings(method, checkpoint, out, "loop.cycles=2", *more))
    with loop.run.progress:
        yield loop
    loop.run.log.close()


def one_cycle(method: str, checkpoint: Path, out: Path, *more: str) -> tuple[list[dict], Waits]:
    """What the first cycle logs, and how often the host waited in it."""
    with started(method, checkpoint, out, *more) as loop:
        with counted() as waits:
            native.train_cycle(loop, 0)
        assert {p.device.type for p in loop.backbone.model.parameters()} == {loop.accelerator.device.type}
    return [*records(out, "update"), *records(out, "cycle")], waits


def assert_same(logged: list[dict], expected: list[dict]) -> None:
    """The same numbers, but for rounding: a kernel of attention may be another one."""
    assert len(logged) == len(expected)
    for a, b in zip(logged, expected, strict=True):
        a, b = ({k: v for k, v in record.items() if isinstance(v, int | float)} for record in (a, b))
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", WAITS)
def test_every_method_gives_the_numbers_of_the_cpu(method, device, on, checkpoint, tmp_path):
    logged, waits = one_cycle(method, checkpoint, tmp_path / "there")
    assert logged[0]["ratio_max"] == 1.0
    on("cpu")
    assert_same(logged, one_cycle(method, checkpoint, tmp_path / "here")[0])
    if device == NAME:
        lines = "\n".join(f"{times:4} {direction} {line}" for (direction, line), times in sorted(waits.items()))
        assert (total(waits, "read"), total(waits, "send")) == WAITS[method], lines


def test_a_hidden_wait_changes_the_count(device, checkpoint, tmp_path, monkeypatch):
    """The table notices one `.item()` in the objective: 2 micro-batches x 2 updates."""
    if device != NAME:
        pytest.skip("a GPU does not count")
    objective = native.update_objective

    def waiting(*arguments):
        result = objective(*arguments)
        result.loss.item()
        return result

    monkeypatch.setattr(native, "update_objective", waiting)
    _, waits = one_cycle("htgrpo", checkpoint, tmp_path)
    assert total(waits, "read") == WAITS["htgrpo"][0] + 4


def test_a_prompt_that_stays_on_the_cpu_stops_the_run(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("htgrpo_ext.backbones.policy.Policy.on_device", lambda self, prompts: prompts)
    with pytest.raises(RuntimeError, match="same device"):
        one_cycle("htgrpo", checkpoint, tmp_path)


def test_adapters_give_the_numbers_of_the_cpu(on, checkpoint, tmp_path):
    logged, _ = one_cycle("htgrpo", checkpoint, tmp_path / "there", *LORA)
    on("cpu")
    assert_same(logged, one_cycle("htgrpo", checkpoint, tmp_path / "here", *LORA)[0])


def test_reuse_gives_the_numbers_of_the_cpu(on, checkpoint, tmp_path):
    """With guidance that begins inside a period."""
    more = ("rollout.reuse.refresh=3", "rollout.guidance=1", "rollout.guidance_interval=[0.3, 1]", "rollout.steps=5")
    logged, _ = one_cycle("htgrpo", checkpoint, tmp_path / "there", *more)
    assert logged[-1]["forwards"]["reused"] > 0
    on("cpu")
    assert_same(logged, one_cycle("htgrpo", checkpoint, tmp_path / "here", *more)[0])


@pytest.mark.parametrize("more", [(), LORA], ids=["full", "lora"])
def test_a_run_resumes_there_from_a_checkpoint_that_names_no_device(more, checkpoint, tmp_path):
    with started("htgrpo", checkpoint, tmp_path / "run", *more) as loop:
        native.train_cycle(loop, 0)
        loop.save()
        native.train_cycle(loop, 1)
        (_, saved), settings = loop.checkpoints()[-1], loop.run.settings
    whole = records(tmp_path / "run", "update")
    state = read_checkpoint(saved).optimizer["state"]
    assert {t.device.type for moments in state.values() for t in moments.values() if torch.is_tensor(t)} == {"cpu"}
    loop = native.start(settings, resume=True)
    with loop.run.progress:
        native.train_cycle(loop, loop.cycles_done)
    loop.run.log.close()
    assert len(whole) == 4 and records(tmp_path / "run", "update") == whole


def test_a_whole_run_is_evaluated_reported_sampled_from_and_painted_with(device, on, checkpoint, tmp_path):
    """`htgrpo train`, `sample` and `eval generate`: the pictures are those of the CPU."""
    train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", "eval.every=1"))
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["base"] is not None and (tmp_path / "run/report.html").exists()
    trained = tiny_settings("htgrpo", tmp_path / "run/model", tmp_path, "sampling.steps=2")
    for place in ("there", "here"):
        for paint in (
            partial(sample, trained, ["a red star in the snow"], 1, 0, tmp_path / place, trace=True),
            partial(generate_set, trained, "microeval", tmp_path / place / "set", limit=1),
        ):
            with counted() as waits:
                paint()
            assert bool(waits) == (place == "there" and device == NAME)
        on("cpu")
    there, here = ({p.name: p.read_bytes() for p in (tmp_path / at).rglob("*.png")} for at in ("there", "here"))
    assert len(there) > 3 and there == here


def test_a_diagnosis_gives_the_numbers_of_the_cpu(on, checkpoint, tmp_path):
    found = []
    for place in ("there", "here"):
        runs = [tiny_settings(m, checkpoint, tmp_path, *settings_of(2)) for m in ("htgrpo", "tracegrpo", "agrpo")]
        diagnose(runs, 2, None, tmp_path / place)
        lines = json.loads((tmp_path / place / "diagnosis.json").read_text())
        found.append([number for r in lines["methods"] for number in (*r["cosine"], *r["norm_ratio"])])
        on("cpu")
    assert len(found[0]) > 3
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-4)
