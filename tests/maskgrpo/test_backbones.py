"""Both real backbones, tiny and random, in the real formats: two cycles of every method in MaskGRPO's loop."""

import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.micro_runs import CONFIGS, records
from helpers.upstream_runs import needs_upstream
from helpers.upstream_stub import Brightness
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.config import load_settings
from htgrpo_ext.workflow.train import train

pytestmark = needs_upstream
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
TINY = [
    "model.dtype=float32",
    "model.lora.rank=2",
    "model.activation_checkpointing=false",
    "rollout.prompts_per_cycle=2",
    "rollout.rollouts_per_prompt=2",
    "rollout.steps=2",
    "loop.cycles=2",
    "loop.updates_per_rollout=2",
    "loop.save_steps=1",
    "loop.learning_rate=1.0e-3",
    "log.tensorboard=false",
    "prompts=[{format: micro}]",
    "reward.terms=[{name: clip, weight: 1.0}]",
]
HELD_OUT = ["eval.every=2", "eval.num_prompts=2", "eval.images_per_prompt=1"]
LAYOUT = {"mmada": ["model.prompt_length=20"], "lumina": ["model.height=96", "model.width=64"]}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """A reward that random images differ in, and for MMaDA a decoder in place of MAGVITv2's 15 s an image."""
    monkeypatch.setattr("htgrpo_ext.rewards.mix.load_scorer", lambda term, device: Brightness())
    grey = lambda self, codes_BN: (codes_BN.view(-1, 1, 32, 32) / 4096.0 - 1).expand(-1, 3, -1, -1)  # noqa: E731
    monkeypatch.setattr("htgrpo_ext.backbones.mmada.backbone.MMaDABackbone.decode", grey)


def weights(model: str, checkpoint) -> list[str]:
    """The settings that name them; MMaDA's decoder is stubbed, but its folder has to be there."""
    return [f"model.checkpoint={checkpoint}", *([f"model.vq_checkpoint={checkpoint}"] if model == "mmada" else [])]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["mmada", "lumina"])
def test_two_cycles_of_every_method(model, method, mmada_folder, lumina_folder, tmp_path):
    if (model, method) == ("mmada", "maskgrpo"):
        pytest.skip("that is MaskGRPO as published: test_published.py")
    checkpoint = mmada_folder if model == "mmada" else lumina_folder
    budget = ["method.budget={global: 1, structure: 1, refinement: 0}"] if method == "htgrpo" else []
    sets = [*TINY, "eval=null", *LAYOUT[model], *budget, *weights(model, checkpoint), f"out={tmp_path / 'run'}"]
    files = [CONFIGS / "model" / f"{model}.yaml", CONFIGS / "method" / f"{method}.yaml"]
    folder = train(load_settings(files, sets), "upstream")
    updates = records(folder, "update")
    assert len(updates) == 4 and updates[0]["ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert all(math.isfinite(value) for u in updates for value in u.values() if isinstance(value, float))
    adapters = load_file(folder / "model" / "adapter_model.safetensors")
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in adapters.items())
    pictures = sorted((folder / "pictures").glob("*.png"))
    assert [path.name for path in pictures] == ["cycle-000001.png", "cycle-000002.png"]
    with Image.open(pictures[0]) as picture:
        assert picture.size == ((64, 32) if model == "mmada" else (128, 96))
        assert picture.info["prompt 1"] != picture.info["prompt 2"]


@pytest.mark.parametrize("model", ["mmada", "lumina"])
def test_held_out_prompts_are_painted_while_it_trains(model, mmada_folder, lumina_folder, tmp_path, capsys):
    """Two of GenEval's kind, before and after two cycles; the best adapter can be folded in, the report shows all."""
    checkpoint = mmada_folder if model == "mmada" else lumina_folder
    budget = "method.budget={global: 1, structure: 1, refinement: 0}"
    sets = [*TINY, *LAYOUT[model], *HELD_OUT, budget, *weights(model, checkpoint), f"out={tmp_path / 'run'}"]
    settings = load_settings([CONFIGS / "model" / f"{model}.yaml", CONFIGS / "method/htgrpo.yaml"], sets)
    folder = train(settings, "upstream")
    evaluations = records(folder, "eval")
    assert [each["cycles_done"] for each in evaluations] == [0, 2]
    assert all(each["images"] == 2 and each["clip_mean"] == each["reward_mean"] for each in evaluations)
    best = json.loads((folder / "best/best.json").read_text())
    assert best == {"cycles_done": 2, "reward_mean": evaluations[1]["reward_mean"]}
    assert load_backbone(settings.model, frozen=True, adapter=folder / "best")
    page, prompts = (folder / "report.html").read_text(), held_out_prompts_of(folder)
    assert all(page.count(prompt) >= 2 for prompt in prompts) and "Rollouts over the cycles" in page
    assert "held-out reward" in capsys.readouterr().out


def held_out_prompts_of(folder) -> list[str]:
    with Image.open(folder / "eval/pictures/cycle-000002.png") as picture:
        return [picture.text["prompt 1"], picture.text["prompt 2"]]


@pytest.mark.parametrize("model", ["mmada", "lumina"])
def test_gradients_reach_every_projection(model, mmada_folder, lumina_folder, tmp_path):
    checkpoint = mmada_folder if model == "mmada" else lumina_folder
    sets = [*TINY, "eval=null", *LAYOUT[model], *weights(model, checkpoint), f"out={tmp_path / 'run'}"]
    budget = "method.budget={global: 1, structure: 1, refinement: 0}"
    files = [CONFIGS / "model" / f"{model}.yaml", CONFIGS / "method" / "htgrpo.yaml"]
    folder = train(load_settings(files, [*sets, budget]), "upstream")
    moved = {
        name.split(".lora_B")[0].rpartition(".")[2]
        for name, weight in load_file(folder / "model" / "adapter_model.safetensors").items()
        if "lora_B" in name and torch.count_nonzero(weight)
    }
    assert moved == {"q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"}
