"""`htgrpo diagnose` on tiny random checkpoints: what must come out, whatever the model has learnt."""

import json

import pytest
import torch
from PIL import Image

from helpers.command import run
from helpers.micro_runs import tiny_overrides, tiny_settings
from helpers.paths import CONFIGS
from helpers.upstream_stub import Brightness
from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone
from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.workflow.diagnose import diagnose
from htgrpo_ext.workflow.diagnosis_settings import settings_of

MICRO = str(CONFIGS / "model" / "micro.yaml")
LAYOUT = {"mmada": ["model.prompt_length=20"], "lumina": ["model.height=48", "model.width=64"]}
TINY = [
    "model.dtype=float32",
    "model.lora.rank=2",
    "rollout.rollouts_per_prompt=2",
    "rollout.steps=2",
    "rollout.guidance=2.0",
    "loop.updates_per_rollout=2",
    "loop.batch_size=4",
    "prompts=[{format: micro}]",
    "reward.terms=[{name: clip, weight: 1.0}]",
    "eval=null",
]


def by_name(found: dict) -> dict:
    return {(record["method"], record["update"]): record for record in found["methods"]}


@pytest.mark.parametrize("setting", ["guidance_interval=[0.5, 1]", "reuse.refresh=2"])
def test_rollouts_that_are_not_exact_are_refused_before_a_model_is_loaded(setting, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("htgrpo_ext.workflow.diagnose.load_backbone", None)
    run = tiny_settings("htgrpo", checkpoint, tmp_path, "rollout.guidance=1", f"rollout.{setting}", *settings_of(2))
    with pytest.raises(UserError, match=r"^the exact gradient is that of exact rollouts, .*; leave out rollout\.\w+$"):
        diagnose([run], 2, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("reward_with_spread")
def test_one_step_of_sampling_makes_the_fully_masked_gradient_exact(checkpoint, tmp_path):
    """Then every token's own context is the fully masked image. HT-GRPO with equal weights, d1 without hidden words."""
    more = ["rollout.steps=1", *settings_of(2)]
    plain = ["method.structure_weight=1.0", "method.refinement_weight=1.0"]
    runs = [
        tiny_settings("htgrpo", checkpoint, tmp_path, *more, *plain),
        tiny_settings("d1", checkpoint, tmp_path, *more, "method.prompt_mask_rate=1.0e-9"),
        tiny_settings("unigrpo", checkpoint, tmp_path, *more),
    ]
    found = diagnose(runs, 2, None, tmp_path / "out")
    records = by_name(found)
    for name in (("htgrpo", "global"), ("d1", "first"), ("d1", "cycle")):
        assert records[name]["cosine"] == pytest.approx([1, 0], abs=1e-5)
        assert records[name]["norm_ratio"][0] == pytest.approx(1, abs=1e-5)
    assert records["htgrpo", "global"]["noise_of_draws"] == 0
    assert records["htgrpo", "structure"]["cosine"][0] < 0.99 and records["unigrpo", "first"]["cosine"][0] < 0.99
    laws = found["laws"]["all"]
    # A ratio of small differences of float32 entropies, by two forwards: CPUs round them otherwise.
    assert laws["share"] == pytest.approx(1, abs=1e-3) and laws["information_marginal"] > 0
    assert laws["log_ratio"]["largest"] < 1e-5


@pytest.mark.usefixtures("reward_with_spread")
def test_the_command_leaves_a_table_and_a_figure_and_overwrites_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    sets = [part for s in tiny_overrides(checkpoint, tmp_path / "run") for part in ("--set", s)]
    asked = ["diagnose", MICRO, "--methods", "maskgrpo,tracegrpo,agrpo", "--prompts", "2", *sets]
    asked += ["--out", str(tmp_path / "out")]
    assert run(monkeypatch, *asked) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    records = by_name(found)
    assert set(records) == {(m, u) for m in ("maskgrpo", "tracegrpo", "agrpo") for u in ("first", "cycle")}
    for update in ("first", "cycle"):
        assert records["tracegrpo", update]["cosine"][0] == pytest.approx(1, abs=1e-9)
    assert records["tracegrpo", "first"]["noise_of_draws"] == 0 < records["agrpo", "first"]["noise_of_draws"]
    # TraceGRPO's gradient was taken over: a row with gradient per rollout, view and method's own updates is counted.
    exact, agrpo, maskgrpo = 12 * 3, 4 * 12 * 2, 4 * 12
    assert found["rows"]["gradient"] <= exact + agrpo + maskgrpo
    for sentence in found["sentences"]:
        assert sentence in said
    assert Image.open(tmp_path / "out" / "diagnosis.png").size[0] > 1000
    assert "| agrpo, first (update 1) |" in (tmp_path / "out" / "diagnosis.md").read_text()
    assert run(monkeypatch, *asked) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'out'}: exists already; give another --out\n"


@pytest.mark.parametrize("model", ["mmada", "lumina"])
def test_real_layouts_are_diagnosed_by_their_adapters(model, mmada_folder, lumina_folder, tmp_path, monkeypatch):
    """With guidance the sampler's law is not the one that methods score, so not even TraceGRPO's gradient is exact."""
    monkeypatch.setattr("htgrpo_ext.rewards.mix.load_scorer", lambda term, device: Brightness())
    mmada = "htgrpo_ext.backbones.mmada.backbone"
    grey = lambda self, codes_BN: (codes_BN.view(-1, 1, 8, 8) / 4096.0 - 1).expand(-1, 3, -1, -1)  # noqa: E731
    monkeypatch.setattr(f"{mmada}.NUM_IMAGE_TOKENS", 64)
    monkeypatch.setattr(f"{mmada}.MMaDABackbone.decode", grey)
    monkeypatch.setattr(f"{mmada}.MMaDABackbone.prepare_decoder", lambda self: None)
    folder = mmada_folder if model == "mmada" else lumina_folder
    sets = [*TINY, *LAYOUT[model], f"model.checkpoint={folder}", *settings_of(2)]
    sets += [f"model.vq_checkpoint={folder}"] if model == "mmada" else []
    budget = "method.budget={global: 1, structure: 0, refinement: 1}"
    files = CONFIGS / "model" / f"{model}.yaml", CONFIGS / "method"
    runs = [load_settings([files[0], files[1] / "htgrpo.yaml"], [*sets, budget])]
    runs += [load_settings([files[0], files[1] / "tracegrpo.yaml"], sets)] if model == "lumina" else []
    found = diagnose(runs, 2, None, tmp_path / "out")
    records = by_name(found)
    assert found["weights"]["trained"] == found["weights"]["compared"] < 20_000
    assert found["exact"]["cosine"][0] == pytest.approx(1) and abs(records["htgrpo", "global"]["cosine"][0]) < 0.999
    if model == "lumina":
        assert abs(records["tracegrpo", "first"]["cosine"][0]) < 0.999
        adapted = diagnose(runs[:1], 2, adapter_of(folder, tmp_path / "adapter"), tmp_path / "adapted")
        assert by_name(adapted)["htgrpo", "global"]["norm_ratio"] != records["htgrpo", "global"]["norm_ratio"]


def adapter_of(folder, out):
    """An adapter of the tiny Lumina-DiMOO that changes it."""
    lora = {"r": 2, "lora_alpha": 8, "target_modules": r".*\.blocks\.\d+\.ff_out"}
    model = LuminaBackbone.load(folder, lora, height=48, width=64).model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(out)
    return out


def test_mistakes_are_one_line_and_leave_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    sets = [part for s in tiny_overrides(checkpoint, tmp_path / "run") for part in ("--set", s)]
    asked = ["diagnose", MICRO, "--prompts", "2", "--out", str(tmp_path / "out"), *sets]
    assert run(monkeypatch, *asked, "--methods", "htgrop") == 2
    assert capsys.readouterr().err.startswith("error: unknown method `htgrop` (one of agrpo, ")
    alike = lambda prompts, codes_BN, names: {name: torch.zeros(len(codes_BN)) for name in names}  # noqa: E731
    monkeypatch.setattr("htgrpo_ext.rewards.scorers.micro.score_codes", alike)
    assert run(monkeypatch, *asked, "--methods", "tracegrpo") == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("error: none of the 4 groups of 3 rollouts has a spread of rewards") and said.count("\n") == 1
    )
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())
