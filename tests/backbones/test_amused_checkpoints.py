"""aMUSEd's folders that are not whole, or of another model: one line each, before anything is trained."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.paths import CONFIGS
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.workflow.plan import plan, print_plan

CONFIG = "transformer/config.json"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
QUERY = "transformer_layers.0.attn1.to_q.weight"


def keys(file, **changes):
    """A change of a JSON file; None takes a key out."""

    def apply(folder):
        held = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({key: value for key, value in held.items() if value is not None}))

    return apply


def tensors(file, change):
    def apply(folder):
        held = load_file(folder / file)
        change(held)
        save_file(held, folder / file, metadata={"format": "pt"})

    return apply


def nan(held):
    held[QUERY][0, 0] = torch.nan


FAULTS = {
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), "DIR: no transformer/ there"),
    "no text encoder": (lambda f: shutil.rmtree(f / "text_encoder"), "DIR: no text_encoder/ there"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "DIR: no model_index.json there"),
    "another pipeline": (
        keys("model_index.json", _class_name="StableDiffusionPipeline"),
        "DIR/model_index.json: _class_name is 'StableDiffusionPipeline', not 'AmusedPipeline'",
    ),
    "another transformer": (
        keys("model_index.json", transformer=["diffusers", "UNet2DConditionModel"]),
        "DIR/model_index.json: transformer is 'UNet2DConditionModel', not 'UVit2DModel'",
    ),
    "a part is not named": (keys("model_index.json", vqvae=None), "DIR/model_index.json: vqvae is None, not 'VQModel'"),
    "no size": (
        keys(CONFIG, hidden_size=None),
        f"DIR/{CONFIG}: `hidden_size` is missing",
    ),
    "a size of text": (
        keys(CONFIG, vocab_size="48"),
        f"DIR/{CONFIG}: vocab_size is '48'",
    ),
    "another image size": (
        keys(CONFIG, sample_size=32),
        f"DIR/{CONFIG}: sample_size is 32: images have 512 pixels a side, not 64 (model.size)",
    ),
    "another text encoder": (
        keys(CONFIG, encoder_hidden_size=32),
        f"DIR/{CONFIG}: encoder_hidden_size is 32, the text encoder's 24",
    ),
    "a mask among the codes": (
        keys("scheduler/scheduler_config.json", mask_token_id=7),
        f"DIR/{CONFIG}: the scheduler's mask_token_id 7 is not between codebook_size 40 and vocab_size 48",
    ),
    "another schedule": (
        keys("scheduler/scheduler_config.json", masking_schedule="linear"),
        "DIR/scheduler/scheduler_config.json: masking_schedule 'linear' is not supported (only 'cosine')",
    ),
    "heads that do not divide": (
        keys(CONFIG, num_attention_heads=5),
        "DIR/transformer: transformer_layers.0.attn1.to_q.weight has shape [32, 32], but by config.json it is [30, 32]",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "DIR/transformer: no weights there (diffusion_pytorch_model"),
    "half the weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:5000]),
        f"DIR/{WEIGHTS}: not a complete safetensors file",
    ),
    "a weight is missing": (
        tensors(WEIGHTS, lambda held: held.pop(QUERY)),
        f"DIR/transformer: 1 weights are missing, {QUERY} for one",
    ),
    "a weight too many": (
        tensors(WEIGHTS, lambda held: held.update(more=torch.ones(1))),
        "DIR/transformer: 1 weights are unexpected, more for one",
    ),
    "a weight of another shape": (
        tensors(WEIGHTS, lambda held: held.update({QUERY: torch.ones(2, 2)})),
        f"DIR/transformer: {QUERY} has shape [2, 2], but by config.json it is [32, 32]",
    ),
    "not a number": (tensors(WEIGHTS, nan), f"DIR/{WEIGHTS}: {QUERY} has values that are not finite"),
    "text weights missing": (
        tensors("text_encoder/model.safetensors", lambda held: held.pop("text_projection.weight")),
        "DIR/text_encoder: missing keys: text_projection.weight",
    ),
    "no merges": (lambda f: (f / "tokenizer/vocab.json").unlink(), "DIR/tokenizer: no tokenizer can be loaded"),
    "rows too long": (
        keys("tokenizer/tokenizer_config.json", model_max_length=99),
        "DIR/tokenizer: rows of 99 ids (model_max_length), but the text encoder reads 12",
    ),
}


def settings_of(checkpoint, *more):
    files = [CONFIGS / "model/amused.yaml", CONFIGS / "method/htgrpo.yaml"]
    return load_settings(files, [f"model.checkpoint={checkpoint}", "model.size=64", "model.dtype=float32", *more])


@pytest.mark.parametrize("spoil, line", FAULTS.values(), ids=FAULTS)
def test_a_broken_folder_is_one_line(spoil, line, amused_folder, tmp_path):
    folder = shutil.copytree(amused_folder, tmp_path / "amused")
    spoil(folder)
    with pytest.raises(UserError) as caught:
        load_backbone(settings_of(folder).model)
    said = str(caught.value).replace(str(folder), "DIR")
    assert said.startswith(line) and "\n" not in said


def test_a_broken_decoder_is_one_line_before_training(amused_folder, tmp_path):
    for name, file, change, line in (
        ("a", "vqvae/config.json", dict(lookup_from_codebook=False), "lookup_from_codebook is off"),
        ("b", "vqvae/config.json", dict(num_vq_embeddings=30), "cannot be loaded"),
    ):
        folder = shutil.copytree(amused_folder, tmp_path / name)
        keys(file, **change)(folder)
        with pytest.raises(UserError, match=line):
            load_backbone(settings_of(folder).model, frozen=True).prepare_decoder()


def test_a_missing_folder_says_how_to_get_it(tmp_path):
    line = f"{tmp_path / 'x'}: no such folder (model.checkpoint); get it with: hf download amused/amused-256"
    assert settings_of(tmp_path / "x").model.absent(pixels=True)[0].startswith(line)


def test_missing_diffusers_is_one_line(amused_folder, monkeypatch):
    monkeypatch.setattr("htgrpo_ext.backbones.amused.find_spec", lambda name: None)
    model = settings_of(amused_folder).model
    for use in (model.sizes, model.prompt_encoder, lambda: load_backbone(model)):
        with pytest.raises(UserError, match=r"aMUSEd is a model of diffusers: pip install .*\[amused\]"):
            use()


def test_a_setting_that_cannot_be_is_refused(tmp_path):
    for setting, line in {
        "model.size=100": "model.size",
        "model.aesthetic_score=11": "model.aesthetic_score",
        "model.lora.targets=[q_proj]": "no projection is called `q_proj`",
    }.items():
        with pytest.raises(UserError, match=line):
            settings_of(tmp_path, setting)


def published(*more):
    return load_settings([CONFIGS / "model/amused.yaml", CONFIGS / "method/htgrpo.yaml"], more)


def test_the_published_model_is_planned_without_a_checkpoint(capsys):
    """Numbers by hand: 22 layers of width 1024 with GEGLU of 2816, six outer blocks of width 768."""
    planned = plan(published())
    layer = 6 * 1024**2 + 3 * 1024 * 2816  # q, k, v, out of the image, q and out to the words; feed-forward
    outer = 6 * 768**2 + 2 * 768 * 3072
    assert planned.sizes.in_blocks == 22 * layer + 6 * outer + 2 * 1024 * 768
    rank = 64
    attention = 22 * 8 * 2 * 1024 + 6 * 8 * 2 * 768  # to the image and to the words, four maps each
    assert planned.sizes.trained == rank * (attention + 22 * ((1024 + 5632) + (2816 + 1024)))
    assert 600e6 < planned.sizes.parameters < 610e6 and planned.sizes.sequence == 256
    assert planned.memory["frozen reference copy"] == 0 and planned.memory["frozen models beside it"] > 0.5e9
    assert plan(published("model.size=512", "rollout.prompts_per_cycle=8")).sizes.sequence == 256  # halved inside
    print_plan(published("rollout.steps=2"))
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("1 x RTX 4090", "1 x A100-80G", "8 CPU cores"))
    assert "H200" not in printed and "DOES NOT FIT" not in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_sizes_come_from_the_checkpoint_where_there_is_one(amused_folder):
    sizes = settings_of(amused_folder).model.sizes()
    assert sizes.source is None and sizes.width == 32 and sizes.num_image_tokens == 16
