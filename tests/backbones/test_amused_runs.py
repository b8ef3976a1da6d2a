"""Runs on a tiny aMUSEd checkpoint: every method, resumed, with full weights; and what its model becomes afterwards."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.amused_checkpoints import settings_of
from helpers.image_sets import geneval_lines, written
from helpers.micro_runs import records
from helpers.paths import CONFIGS
from helpers.upstream_stub import Brightness
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.backbones.adapters import merge
from htgrpo_ext.errors import UserError
from htgrpo_ext.workflow.generate import generate_set
from htgrpo_ext.workflow.train import start, train

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))


@pytest.fixture(autouse=True)
def reward_with_spread(monkeypatch):
    """In place of CLIP, which has no weights here."""
    monkeypatch.setattr("htgrpo_ext.rewards.mix.load_scorer", lambda term, device: Brightness())


def trained(settings, resume=False) -> dict[str, torch.Tensor]:
    """The weights that the native loop trained, without a report."""
    loop = start(settings, "native", resume)
    loop.train()
    loop.run.log.close()
    return {name: weight.detach() for name, weight in loop.backbone.model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("method", METHODS)
def test_two_cycles_of_every_method(method, amused_folder, tmp_path):
    weights = trained(settings_of(method, amused_folder, tmp_path / "run", "eval=null"))
    updates = records(tmp_path / "run", "update")
    assert len(updates) == 4 and updates[0]["ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert all(math.isfinite(value) for u in updates for value in u.values() if isinstance(value, float))
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in weights.items())
    with Image.open(tmp_path / "run/pictures/cycle-000002.png") as picture:
        assert picture.size == (128, 64)


@pytest.mark.parametrize("method", ["htgrpo", "d1"])
def test_a_resumed_run_ends_with_the_same_bits(method, amused_folder, tmp_path):
    whole = trained(settings_of(method, amused_folder, tmp_path / "whole", "eval=null"))
    trained(settings_of(method, amused_folder, tmp_path / "part", "eval=null", "loop.cycles=1"))
    part = trained(settings_of(method, amused_folder, tmp_path / "part", "eval=null"), resume=True)
    assert whole.keys() == part.keys() and all(torch.equal(whole[name], part[name]) for name in whole)
    assert records(tmp_path / "part", "update") == records(tmp_path / "whole", "update")


def pipelines_pictures(folder) -> np.ndarray:
    from diffusers import AmusedPipeline

    pipeline = AmusedPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    options = dict(num_inference_steps=3, output_type="np")
    return pipeline(["a photo of a cat"], generator=torch.Generator().manual_seed(0), **options).images


def files_in(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_adapters_merge_into_a_folder_that_the_pipeline_paints_with(amused_folder, tmp_path):
    """Held-out prompts, the best adapter, the merged folder and a benchmark's images, from one run."""
    name = "diffusion_pytorch_model"
    base = shutil.copytree(amused_folder, tmp_path / "base")
    shutil.copy(base / f"transformer/{name}.safetensors", base / f"transformer/{name}.fp16.safetensors")
    geneval = written(tmp_path / "geneval.jsonl", geneval_lines())
    held_out = [f"eval.exclude={geneval}", "eval.every=1", "eval.num_prompts=2", "eval.images_per_prompt=1"]
    settings = settings_of("htgrpo", base, tmp_path / "run", *held_out, "sampling.steps=2")
    folder = train(settings)
    assert [each["cycles_done"] for each in records(folder, "eval")] == [0, 1, 2]
    assert "Held-out prompts" in (folder / "report.html").read_text()
    assert merge(base, folder / "model", tmp_path / "merged") == 2 * (8 + 2) + 2 * 8
    old_types = files_in(base) - files_in(tmp_path / "merged")  # weights that were not changed
    assert old_types == {f"transformer/{name}.fp16.safetensors"} and files_in(tmp_path / "merged") < files_in(base)
    before, after = pipelines_pictures(amused_folder), pipelines_pictures(tmp_path / "merged")
    assert after.shape == (1, 64, 64, 3) and (before != after).any()
    folded = load_backbone(settings.model, frozen=True, adapter=folder / "model").model.state_dict()
    merged = load_file(tmp_path / f"merged/transformer/{name}.safetensors")
    assert merged.keys() == folded.keys() and all(torch.equal(merged[each], folded[each]) for each in merged)

    said = generate_set(settings, "geneval", tmp_path / "set", folder / "model", prompts=geneval, limit=1)
    assert said.startswith("GenEval: 6 folders with 24 images of 64 x 64 pixels")
    record = json.loads((tmp_path / "set/record.json").read_text())
    assert record["sampler"] == {"sampler": "maskgit-amused", "steps": 2, "guidance": 9.0, "temperature": 2.0}


def test_full_weights_are_a_checkpoint_of_their_own(amused_folder, tmp_path):
    settings = settings_of("htgrpo", amused_folder, tmp_path / "run", "eval=null", "model.tuning=full", "loop.cycles=1")
    folder = train(settings)
    assert (pipelines_pictures(folder / "model") != pipelines_pictures(amused_folder)).any()
    backbone = load_backbone(settings.model.model_copy(update={"checkpoint": folder / "model"}), frozen=True)
    base = load_backbone(settings.model, frozen=True).model.state_dict()
    moved = [name for name, weight in backbone.model.state_dict().items() if not torch.equal(weight, base[name])]
    assert len(moved) == len(base)


def test_maskgrpos_loop_says_why_not(amused_folder, tmp_path):
    with pytest.raises(UserError) as caught:
        train(settings_of("htgrpo", amused_folder, tmp_path / "run"), "upstream")
    assert str(caught.value) == (
        "amused cannot be trained by LOOP=upstream: its transformer is a class of diffusers, and MaskGRPO's loop "
        "trains models of transformers; use LOOP=native"
    )
    assert not (tmp_path / "run").exists()
