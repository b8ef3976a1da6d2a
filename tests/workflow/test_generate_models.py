"""`htgrpo eval generate` of tiny random checkpoints of MMaDA and Lumina-DiMOO, in both benchmarks' layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.image_sets import dpg_lines, geneval_lines, written
from helpers.paths import CONFIGS
from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.sets import check_set
from htgrpo_ext.workflow.generate import generate_set

LUMINA = ["model.height=32", "model.width=32", "model.dtype=float32", "sampling.steps=3"]


def lumina(folder, *more):
    files = [CONFIGS / "model/lumina.yaml", CONFIGS / "method/htgrpo.yaml"]
    return load_settings(files, [f"model.checkpoint={folder}", *LUMINA, *more])


def adapter_of(lumina_folder, out) -> Path:
    from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone

    lora = {"r": 2, "lora_alpha": 8, "target_modules": r".*\.blocks\.\d+\.ff_out"}
    model = LuminaBackbone.load(lumina_folder, lora, height=32, width=32).model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(out)
    return out


def test_lumina_and_its_adapter_paint_both_benchmarks_layouts(lumina_folder, tmp_path):
    geneval = written(tmp_path / "geneval.jsonl", geneval_lines())
    dpg = written(tmp_path / "dpg.jsonl", dpg_lines())
    adapter = adapter_of(lumina_folder, tmp_path / "adapter")
    said = generate_set(lumina(lumina_folder), "geneval", tmp_path / "base", prompts=geneval, limit=1)
    assert said == "GenEval: 6 folders with 24 images of 32 x 32 pixels (not the whole: 1 prompts of each task)"
    said = generate_set(lumina(lumina_folder), "dpg", tmp_path / "grids", prompts=dpg, limit=2)
    assert said == "DPG-Bench: 2 grids of 2 x 2 tiles of 32 x 32 pixels (not the whole: 2 prompts of each task)"
    assert sorted(path.name for path in (tmp_path / "grids/images").iterdir()) == ["coco0.png", "coco1.png"]
    generate_set(lumina(lumina_folder), "geneval", tmp_path / "trained", adapter, prompts=geneval, limit=1)
    base, trained = (check_set(tmp_path / name)[2] for name in ("base", "trained"))
    assert trained.adapter and not base.adapter and (base.seed, base.sampler) == (trained.seed, trained.sampler)
    assert base.sampler == {"sampler": "maskgit-constant", "steps": 3, "guidance": 4.0, "temperature": 1.0}
    suite, items, _ = check_set(tmp_path / "base")
    pixels = [
        np.stack([np.asarray(image) for image in suite.load(tmp_path / name / "images", items[0])])
        for name in ("base", "trained")
    ]
    assert (pixels[0] != pixels[1]).any() and (pixels[0][0] != pixels[0][1]).any()
    with pytest.raises(UserError, match=r"the set there has label base, not trained; adapter None, not sha256:"):
        generate_set(lumina(lumina_folder), "geneval", tmp_path / "base", adapter, "trained", geneval, limit=1)


def test_images_that_a_scorer_cannot_read_are_refused(lumina_folder, tmp_path):
    dpg = written(tmp_path / "dpg.jsonl", dpg_lines())
    with pytest.raises(UserError, match="^DPG-Bench's scorer reads square images only, not 48 x 32 pixels"):
        generate_set(lumina(lumina_folder, "model.width=48"), "dpg", tmp_path / "set", prompts=dpg, limit=1)
    assert not (tmp_path / "set").exists()


def test_mmada_paints_a_grid(mmada_folder, tmp_path, monkeypatch):
    from helpers.upstream_stub import StubDecoder

    monkeypatch.setattr("htgrpo_ext.backbones.mmada.backbone.load_magvit", lambda folder: StubDecoder())
    files = [CONFIGS / "model/mmada.yaml", CONFIGS / "method/htgrpo.yaml"]
    sets = [f"model.checkpoint={mmada_folder}", f"model.vq_checkpoint={mmada_folder}", "model.dtype=float32"]
    made = load_settings(files, [*sets, "sampling.steps=2"])
    dpg = written(tmp_path / "dpg.jsonl", dpg_lines())
    generate_set(made, "dpg", tmp_path / "set", prompts=dpg, limit=1)
    _, (item,), record = check_set(tmp_path / "set")
    assert item.key == "coco0" and record.size == (32, 32) and record.model["name"] == "mmada"
    assert record.sampler == {"sampler": "maskgit", "steps": 2, "guidance": 3.5, "temperature": 1.0}
    assert json.loads((tmp_path / "set/record.json").read_text())["size"] == [32, 32]
