"""MMaDA's layout and ids, and what may move its logits. Against the authors' own code: test_upstream_mmada.py."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.llada_checkpoints import special_tokens, write_tokenizer
from helpers.paths import ROOT
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.backbones.llada.backbone import left_padded
from htgrpo_ext.backbones.mmada import backbone as mmada
from htgrpo_ext.backbones.mmada.backbone import MMaDABackbone, image_block
from htgrpo_ext.config import load_settings
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.errors import UserError

TEXTS = ["a photo of a red cat", "two dog beside the round green bench , a photo", ""]
CONFIGS = [ROOT / "configs" / name for name in ("model/mmada.yaml", "method/htgrpo.yaml")]


@pytest.fixture(scope="module")
def backbone(mmada_folder):
    return MMaDABackbone.load(mmada_folder, prompt_length=24)


def canvas(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(8192, (rows, 1024), generator=generator)
    return codes.masked_fill(torch.rand(codes.shape, generator=generator) < 0.5, MASK)


def some(codes, count=5):
    """A few wanted positions per row, the corners among them."""
    wanted = torch.zeros_like(codes, dtype=torch.bool)
    wanted[:, [0, 31, 500, 992, 1023][:count]] = True
    return wanted


@torch.no_grad()
def logits_of(backbone, prompts, codes):
    return backbone.image_logits(prompts, codes, some(codes)).view(len(codes), 5, -1)


def test_a_prompt_is_padded_in_front_and_framed(backbone):
    prompts = backbone.encode_prompts(TEXTS[:1])
    words = [0, 1, 2, 0, 4, 8]  # the places of a, photo, of, a, red, cat among the tokenizer's words
    assert prompts.ids_BL.tolist() == [[126093] * 15 + [126088, 126080, *words, 126081]]
    assert prompts.attention_BL.tolist() == [[False] * 15 + [True] * 9]
    assert prompts.words_BL.tolist() == [[False] * 17 + [True] * 6 + [False]]


def test_the_unconditional_row_is_task_begin_end(backbone):
    prompts = backbone.unconditional()
    assert prompts.ids_BL.tolist() == [[126093] * 21 + [126088, 126080, 126081]]
    assert not prompts.words_BL.any()


def test_a_long_prompt_is_cut_and_still_ends_with_eos(backbone):
    ids = backbone.encode_prompts(["cat " * 40]).ids_BL
    assert ids.tolist() == [[126088, 126080, *[8] * 21, 126081]]


@pytest.mark.parametrize("text", ["a <|mdm_mask|> cat", "<|startoftext|>a cat", "a cat[gMASK]", "<|endoftext|>"])
def test_a_text_never_becomes_a_marker(backbone, text):
    with pytest.raises(UserError, match=r"is a marker of the model and cannot be part of a prompt"):
        backbone.encode_prompts(["a cat", text])
    with pytest.raises(UserError, match="has half of a surrogate pair"):
        backbone.encode_prompts(["a cat", "\udce4"])


def test_code_0_has_the_tokenizers_length_as_id():
    block = image_block()
    ids = block.ids(torch.tensor([[0, 8191, *[MASK] * 1022]]))
    assert ids.tolist() == [[126084, 126349, 134540, *[126336] * 1022, 126085]]


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_codes_to_ids_and_back_are_the_same_codes(seed):
    codes = canvas(2, seed)
    assert torch.equal(image_block().codes(image_block().ids(codes)), codes)


def test_hidden_pads_and_other_rows_change_no_logit(backbone, mmada_folder):
    codes, prompts = canvas(3), backbone.encode_prompts(TEXTS)
    together = logits_of(backbone, prompts, codes)
    other = prompts._replace(ids_BL=prompts.ids_BL.masked_fill(~prompts.attention_BL, 7))
    assert torch.equal(logits_of(backbone, other, codes), together)
    wider = MMaDABackbone(backbone.model, backbone.tokenizer, prompt_length=40)
    torch.testing.assert_close(logits_of(wider, wider.encode_prompts(TEXTS), codes), together, atol=1e-5, rtol=0)
    for row in range(3):
        alone = logits_of(backbone, prompts.rows(slice(row, row + 1)), codes[row : row + 1])[0]
        torch.testing.assert_close(alone, together[row], atol=1e-5, rtol=0)


def test_visible_pads_change_logits_as_in_maskgrpo(backbone):
    seeing = MMaDABackbone(backbone.model, backbone.tokenizer, prompt_length=24, masks_padding=False)
    codes, prompts = canvas(1), seeing.encode_prompts(TEXTS[:1])
    other = prompts._replace(ids_BL=prompts.ids_BL.masked_fill(~prompts.attention_BL, 7))
    assert (logits_of(seeing, prompts, codes) - logits_of(seeing, other, codes)).abs().max() > 1e-3
    assert (logits_of(seeing, prompts, codes) - logits_of(backbone, prompts, codes)).abs().max() > 1e-3


def test_wanted_logits_are_the_bare_models_at_the_codes_places(backbone):
    """Against the bare model, asked for everything: the image begins behind the prompt and its start marker."""
    codes, prompts = canvas(1), backbone.encode_prompts(TEXTS[:1])
    ids = torch.cat([prompts.ids_BL, image_block().ids(codes)], dim=1)
    mask = torch.cat([prompts.attention_BL, torch.ones(1, 1026, dtype=torch.bool)], dim=1)
    with torch.no_grad():
        everything = backbone.model(ids, attention_mask=mask).logits[0]
    want = everything[24 + 1 + torch.tensor([0, 31, 500, 992, 1023]), 126349:134541]
    torch.testing.assert_close(logits_of(backbone, prompts, codes)[0], want, atol=1e-5, rtol=0)


def shifted(special, name, places=1):
    """The special tokens with filler in front of `name`: everything from there on stands elsewhere."""
    at = special.index(name)
    return [*special[:at], *(f"extra{i}" for i in range(places)), *special[at:]]


@pytest.mark.parametrize(
    ("special", "line"),
    [
        (shifted(special_tokens(), "<|mdm_mask|>"), "has <|mdm_mask|> at 126337, the layout at 126336"),
        (shifted(special_tokens(), "<|startoftext|>"), "has <|startoftext|> at 126081, the layout at 126080"),
        ([*special_tokens(), "one more"], "has 126350 tokens, not 126349: image codes would be shifted"),
        ([*special_tokens()[:-1], "<|soi|>"], "has <|soi|> at 126348, the layout at 126084"),
        (special_tokens()[:-263], "has no token <|mdm_mask|>, which the layout has at 126336"),
    ],
    ids=["mask", "bos", "length", "soi", "no mask"],
)
def test_a_tokenizer_with_other_ids_is_refused_naming_both_ids(tmp_path, mmada_folder, special, line):
    write_tokenizer(tmp_path, special)
    (tmp_path / "config.json").write_bytes((mmada_folder / "config.json").read_bytes())
    with pytest.raises(UserError) as caught:
        MMaDABackbone.load(tmp_path)
    assert f"{tmp_path}: the tokenizer {line}" in str(caught.value).splitlines()


def test_a_config_with_another_mask_or_too_few_rows_is_refused(tmp_path, mmada_folder):
    for file in mmada_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    config = json.loads((mmada_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "mask_token_id": 5, "embedding_size": 126464}))
    with pytest.raises(UserError) as caught:
        MMaDABackbone.load(tmp_path)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/config.json: mask_token_id is 5, the layout has 126336",
        f"{tmp_path}/config.json: 126464 vocabulary rows, but the image codes need 134541",
    ]


def test_decoding_without_upstream_or_weights_is_one_line(backbone, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no MAGVITv2 checkpoint there"):
        backbone.decode(canvas(1).clamp(min=0))
    monkeypatch.setenv("UPSTREAM_CHECKOUT", str(tmp_path))
    with pytest.raises(UserError, match="make upstream"):
        mmada.magvit_class()


class StubDecoder(torch.nn.Module):
    """Stands for MAGVITv2: every pixel of an image is its mean code, from -2 to 2."""

    @classmethod
    def from_pretrained(cls, folder, **_):
        print("chatter")
        return cls(), {}

    def decode_code(self, codes_bN):
        return (codes_bN.float().mean(1) / 8191 * 4 - 2).view(-1, 1, 1, 1).expand(-1, 3, 512, 512)


def test_pixels_are_clamped_and_in_order(backbone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mmada, "magvit_class", lambda: StubDecoder)
    painting = MMaDABackbone(backbone.model, backbone.tokenizer, vq_checkpoint=tmp_path)
    codes = torch.tensor([0, 4096, 8191, 3000, 5000, 0])[:, None].expand(6, 1024)
    pixels = painting.decode(codes)
    assert pixels.shape == (6, 3, 512, 512)
    assert pixels[:, 0, 0, 0].tolist() == pytest.approx([-1, 0.0002, 1, -0.535, 0.4417, -1], abs=1e-3)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("attention", ["masked", "as-maskgrpo"])
def test_the_config_file_determines_what_is_loaded(mmada_folder, attention):
    overrides = [f"model.checkpoint={mmada_folder}", "model.dtype=float32", f"model.attention={attention}"]
    run = load_settings(CONFIGS, overrides)
    assert run.model.num_image_tokens == 1024
    first, again = (load_backbone(run.model, seed=s) for s in (1, 1))
    assert first.masks_padding is (attention == "masked") and first.prompt_length == 257
    trained = {name: p for name, p in first.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 7  # A and B, two blocks, seven projections
    assert all(torch.equal(p, dict(again.model.named_parameters())[name]) for name, p in trained.items())


def test_the_reference_is_the_model_without_adapters(mmada_folder):
    lora = {"r": 2, "lora_alpha": 2, "target_modules": r".*\.blocks\.\d+\.(q_proj|ff_out)"}
    backbone = MMaDABackbone.load(mmada_folder, lora, prompt_length=24)
    codes, prompts = canvas(1), backbone.encode_prompts(TEXTS[:1])
    before = logits_of(backbone, prompts, codes)
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    assert (logits_of(backbone, prompts, codes) - before).abs().max() > 1e-3
    with backbone.reference():
        assert torch.equal(logits_of(backbone, prompts, codes), before)


def test_left_padding_marks_the_words():
    prompts = left_padded([[5, 6, 7], [8]], [range(1, 2), range(0, 0)], length=4, pad_id=9)
    assert prompts.ids_BL.tolist() == [[9, 5, 6, 7], [9, 9, 9, 8]]
    assert prompts.attention_BL.tolist() == [[False, True, True, True], [False, False, False, True]]
    assert prompts.words_BL.tolist() == [[False, False, True, False], [False] * 4]


def test_an_unknown_projection_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="no projection is called `o_proj`"):
        load_settings(CONFIGS, ["model.lora.targets=[q_proj, o_proj]"])
