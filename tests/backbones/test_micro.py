"""The micro model and its backbone: what may and what may not move a log-probability."""

import re

import pytest
import torch

from helpers.command import run
from helpers.micro_runs import CONFIGS, tiny_checkpoint
from htgrpo_ext.backbones.micro.backbone import PAD, MicroBackbone
from htgrpo_ext.backbones.micro.model import MicroModel
from htgrpo_ext.backbones.micro.pretrain import pretrain
from htgrpo_ext.config import load_settings
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.errors import UserError

LORA = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "ff_out"]}
TEXTS = [
    "a plain star on a beach",
    "a red plain heart and a blue dotted circle in the snow",
    "two plain stars by the sea",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


def masked_logits(backbone, prompts):
    codes = torch.full((len(prompts.ids_BL), 64), MASK)
    with torch.no_grad():
        return backbone.image_logits(prompts, codes, codes == MASK).view(len(codes), 64, -1)


def test_ids_of_pads_change_no_logit(checkpoint):
    backbone = MicroBackbone.load(checkpoint)
    prompts = backbone.encode_prompts(TEXTS)
    padded = prompts.ids_BL == PAD
    assert padded.any()
    other = prompts._replace(ids_BL=prompts.ids_BL.masked_fill(padded, 7))
    torch.testing.assert_close(masked_logits(backbone, other), masked_logits(backbone, prompts), atol=1e-6, rtol=0)


def test_words_change_logits(checkpoint):
    logits = masked_logits(*(lambda b: (b, b.encode_prompts(TEXTS)))(MicroBackbone.load(checkpoint)))
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_other_rows_of_a_batch_change_no_logit(checkpoint):
    backbone = MicroBackbone.load(checkpoint)
    together = masked_logits(backbone, backbone.encode_prompts(TEXTS))
    for row, text in enumerate(TEXTS):
        alone = masked_logits(backbone, backbone.encode_prompts([text]))[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)


def test_logits_of_wanted_positions_are_row_major(checkpoint):
    backbone = MicroBackbone.load(checkpoint)
    prompts = backbone.encode_prompts(TEXTS)
    everything = masked_logits(backbone, prompts)
    wanted = torch.rand(3, 64, generator=torch.Generator().manual_seed(0)) < 0.2
    with torch.no_grad():
        some = backbone.image_logits(prompts, torch.full((3, 64), MASK), wanted)
    torch.testing.assert_close(some, everything[wanted], atol=1e-6, rtol=0)


def test_every_position_has_different_logits(checkpoint):
    backbone = MicroBackbone.load(checkpoint)
    logits = masked_logits(backbone, backbone.encode_prompts(TEXTS[:1]))[0]
    distances = torch.cdist(logits, logits) + torch.eye(64)
    assert distances.min() > 1e-5


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_reference_stays_the_loaded_model(checkpoint, lora):
    backbone = MicroBackbone.load(checkpoint, lora)
    prompts = backbone.encode_prompts(TEXTS)
    before = masked_logits(backbone, prompts)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert (masked_logits(backbone, prompts) - before).abs().max() > 1e-3
    with backbone.reference():
        torch.testing.assert_close(masked_logits(backbone, prompts), before, atol=0, rtol=0)


def test_only_adapters_on_every_target_of_every_block_train(checkpoint):
    model = MicroBackbone.load(checkpoint, LORA).model
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    adapted = {tuple(name.split(".")[3:5]) for name in trained}  # base_model.model.blocks.0.q_proj.lora_A...
    assert adapted == {(str(block), target) for block in range(2) for target in LORA["target_modules"]}


def test_adapters_do_not_depend_on_the_global_generator(checkpoint):
    def weights():
        return [p.clone() for p in MicroBackbone.load(checkpoint, LORA, seed=3).model.parameters()]

    state = torch.random.get_rng_state()
    first = weights()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(), strict=True))


def test_saved_models_load_to_the_same_weights(checkpoint, tmp_path):
    model = MicroModel.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path)
    again = MicroModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_unknown_words_and_long_prompts_are_refused(checkpoint, tmp_path):
    backbone = MicroBackbone.load(checkpoint)
    with pytest.raises(UserError, match="unknown word `zebra`"):
        backbone.encode_prompts(["a zebra"])
    with pytest.raises(UserError, match="13 words, but the model reads at most 12"):
        backbone.encode_prompts(["a " * 13])
    with pytest.raises(UserError, match="pretrain-micro"):
        MicroBackbone.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("out", "line"),
    [
        ("file", "exists already; give another --out"),
        ("full", "exists already; give another --out"),
        ("file/new", "cannot be written .*Not a directory"),
        ("x" * 300, "cannot be written .*File name too long"),
        ("/proc/new", "cannot be written .*No such file or directory"),
    ],
)
def test_pretraining_says_before_it_trains_that_it_cannot_write(tmp_path, monkeypatch, capsys, out, line):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("mine")
    monkeypatch.setattr("htgrpo_ext.backbones.micro.pretrain.fresh_model", lambda _: pytest.fail("it trained"))
    assert run(monkeypatch, "pretrain-micro", "--out", str(tmp_path / out), "--steps", "2") == 2
    assert re.fullmatch(f"error: .*{line}.*\n", capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "config.json").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_pretraining_fills_an_empty_folder_and_leaves_nothing_when_it_is_stopped(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    pretrain(tmp_path / "a", seed=1, steps=1, batch_size=2)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]

    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("htgrpo_ext.backbones.micro.pretrain.fresh_model", stopped)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "b", seed=1, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        ("[q_proj, o_proj]", "no projection is called `o_proj` .model.lora.targets; there are q_proj, k_proj"),
        ("[]", "model.lora.targets .*at least 1 item"),
    ],
)
def test_lora_targets_that_do_not_exist_are_refused(targets, line):
    files = [CONFIGS / "model/micro.yaml", CONFIGS / "method/htgrpo.yaml"]
    with pytest.raises(UserError, match=line):
        load_settings(files, ["model.tuning=lora", f"model.lora.targets={targets}"])


def test_pretraining_twice_gives_the_same_weights_and_leaves_the_global_generator_alone(tmp_path):
    state = torch.random.get_rng_state()
    for name in ("a", "b"):
        pretrain(tmp_path / name, seed=1, steps=2, batch_size=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    a, b = (MicroModel.from_pretrained(tmp_path / name) for name in ("a", "b"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
