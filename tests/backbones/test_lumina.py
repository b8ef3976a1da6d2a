"""Lumina-DiMOO's layout and ids, and what may move its logits. Against the authors' code: test_upstream_lumina.py."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.llada_checkpoints import lumina_special_tokens, write_tokenizer
from helpers.paths import ROOT
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.backbones.lumina.backbone import LuminaBackbone, image_block
from htgrpo_ext.backbones.tokens import check_tokenizer, load_tokenizer
from htgrpo_ext.config import load_settings
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.errors import UserError

CONFIGS = [ROOT / "configs" / name for name in ("model/lumina.yaml", "method/htgrpo.yaml")]
TEXTS = ["a photo of a red cat", "two dog beside the round green bench , a photo", ""]
SIZE = dict(height=48, width=80)  # 3 rows of 5 codes
SIDES = st.integers(1, 40).map(lambda n: 16 * n)


@pytest.fixture(scope="module")
def backbone(lumina_folder):
    return LuminaBackbone.load(lumina_folder, prompt_length=40, **SIZE)


def canvas(rows, tokens=15, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(8192, (rows, tokens), generator=generator)
    return codes.masked_fill(torch.rand(codes.shape, generator=generator) < 0.5, MASK)


@torch.no_grad()
def logits_of(backbone, prompts, codes):
    return backbone.image_logits(prompts, codes, torch.ones_like(codes, dtype=torch.bool)).view(*codes.shape, -1)


@settings(max_examples=40)
@given(SIDES, SIDES, st.integers(0, 10_000))
def test_codes_to_ids_and_back_are_the_same_codes_at_every_size(height, width, seed):
    H, W = height // 16, width // 16
    block, codes = image_block(height, width), canvas(2, H * W, seed)
    ids = block.ids(codes)
    assert torch.equal(block.codes(ids), codes)
    # The other way round: the frame taken off, the last column is newlines, and the rest is the codes in raster order.
    assert ids[:, :2].tolist() == [[126354, 126349]] * 2 and ids[:, -2:].tolist() == [[126350, 126355]] * 2
    grid = ids[:, 2:-2].reshape(2, H, W + 1)
    assert (grid[..., -1] == 126084).all()
    assert torch.equal(grid[..., :-1].reshape(2, -1), torch.where(codes == MASK, 126336, codes + 126356))
    wanted = codes == MASK
    assert torch.equal(block.at_slots(wanted), ids == 126336)


def test_block_lengths_are_the_published_ones():
    assert len(image_block(512, 512).frame_I) == 1056 + 4
    assert len(image_block(1024, 1024).frame_I) == 4160 + 4
    assert len(image_block(768, 1536).frame_I) == 48 * 97 + 4


def test_a_prompt_is_templated_and_padded_in_front(backbone):
    prompts = backbone.encode_prompts(TEXTS[:1])
    system, system_end, user, user_end = (126337 + i for i in (4, 5, 6, 7))
    instruction = [17, 18, 19, 20, 21, 3, 22, 23, 15]  # Generate an image according to the text prompt .
    ids = [system, *instruction, system_end, user, 0, 1, 2, 0, 4, 8, user_end]
    assert prompts.ids_BL.tolist() == [[126339] * 21 + ids]
    assert prompts.attention_BL.tolist() == [[False] * 21 + [True] * 19]
    assert prompts.words_BL.tolist() == [[False] * 33 + [True] * 6 + [False]]


def test_the_unconditional_row_is_the_template_around_one_token(backbone):
    prompts = backbone.unconditional()
    assert prompts.ids_BL[0, -4:].tolist() == [126342, 126343, 126351, 126344]
    assert prompts.attention_BL.sum() == 14 and not prompts.words_BL.any()


def test_a_prompt_that_is_too_long_is_refused(backbone):
    with pytest.raises(UserError, match="43 ids with the template, but there is room for 40"):
        backbone.encode_prompts(["cat " * 30])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat</user><answer>", "`</user>` is a marker"),
        ("<system>a cat", "`<system>` is a marker"),
        ("<uncondition>", "`<uncondition>` is a marker"),
        ("a <|mdm_mask|> cat", "`<|mdm_mask|>` is a marker"),
        ("a cat<|endoftext|>", "`<|endoftext|>` is a marker"),
        ("half \ud83d of a pair", "has half of a surrogate pair"),
    ],
)
def test_a_text_never_becomes_a_marker(backbone, text, shown):
    with pytest.raises(UserError, match=re.escape(shown)):
        backbone.encode_prompts(["a cat", text])


def test_other_markup_is_text(backbone):
    before, after = (backbone.encode_prompts([text]).attention_BL.sum() for text in ("a cat", "a cat <b> </ user>"))
    assert after >= before


def test_pads_and_other_rows_change_no_logit(backbone, lumina_folder):
    codes, prompts = canvas(3), backbone.encode_prompts(TEXTS)
    together = logits_of(backbone, prompts, codes)
    other = prompts._replace(ids_BL=prompts.ids_BL.masked_fill(~prompts.attention_BL, 7))
    assert torch.equal(logits_of(backbone, other, codes), together)
    wider = LuminaBackbone(backbone.model, backbone.tokenizer, prompt_length=60, **SIZE)
    assert torch.equal(logits_of(wider, wider.encode_prompts(TEXTS), codes), together)
    for row in range(3):
        alone = logits_of(backbone, prompts.rows(slice(row, row + 1)), codes[row : row + 1])[0]
        torch.testing.assert_close(alone, together[row], atol=1e-5, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_logits_equal_those_of_the_sequence_without_padding(backbone):
    codes = canvas(1)
    ids = backbone.tokenizer(
        "<system>Generate an image according to the text prompt.</system><user>a red cat</user>", return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        everything = backbone.model(torch.cat([ids, image_block(**SIZE).ids(codes)], dim=1)).logits[0]
    want = everything[[ids.shape[1] + 2 + j + j // 5 for j in range(15)], 126356:134548]
    torch.testing.assert_close(
        logits_of(backbone, backbone.encode_prompts(["a red cat"]), codes)[0], want, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda s: [*s, "one more"], "has 126357 tokens, not 126356 or 134548: image codes would be shifted"),
        (lambda s: [*s[:-2], s[-1], s[-2]], "has <answer> at 126355, the layout at 126354"),
        (lambda s: [*s[:-5], "<nobody>", *s[-4:]], "has no token <uncondition>, which the layout has at 126351"),
    ],
)
def test_a_tokenizer_with_other_ids_is_refused_naming_both_ids(tmp_path, lumina_folder, change, line):
    write_tokenizer(tmp_path, change(lumina_special_tokens()))
    (tmp_path / "config.json").write_bytes((lumina_folder / "config.json").read_bytes())
    with pytest.raises(UserError) as caught:
        LuminaBackbone.load(tmp_path)
    assert f"{tmp_path}: the tokenizer {line}" in str(caught.value).splitlines()


class WordsOnly:
    """A tokenizer with the right length and names, but an ordinary word where Lumina-DiMOO ends its rows."""

    added_tokens_decoder = {126349: "a", 126350: "b"}

    def __len__(self):
        return 126356

    def get_vocab(self):
        return {"<|mdm_mask|>": 126336, "<uncondition>": 126351}

    def convert_ids_to_tokens(self, token_id):
        return {126084: "house", 126354: "<begin>", 126355: "[end]"}.get(token_id, "added")


def test_an_ordinary_word_at_a_reserved_id_is_refused_but_another_marker_is_accepted():
    with pytest.raises(UserError) as caught:
        check_tokenizer(
            WordsOnly(), Path("X"), LuminaBackbone.named_tokens(None), LuminaBackbone.reserved, lengths=(126356,)
        )
    assert str(caught.value) == "X: the tokenizer has 'house' at 126084, where the layout has newline"


def test_a_tokenizer_that_contains_the_image_codes_is_accepted(tmp_path, lumina_folder):
    write_tokenizer(tmp_path, [*lumina_special_tokens(), *(f"<code{i}>" for i in range(8192))])
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == 134548
    named = LuminaBackbone.named_tokens(tokenizer)
    check_tokenizer(tokenizer, tmp_path, named, LuminaBackbone.reserved, LuminaBackbone.lengths)


def test_a_head_whose_last_rows_are_not_the_codebook_is_refused(tmp_path, lumina_folder):
    for file in lumina_folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((lumina_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "embedding_size": 134656}))
    with pytest.raises(UserError, match="134656 vocabulary rows, but the image codes need 134548"):
        LuminaBackbone.load(tmp_path)


def test_a_checkpoint_of_mmada_is_refused(mmada_folder):
    with pytest.raises(UserError, match="has 126349 tokens, not 126356 or 134548"):
        LuminaBackbone.load(mmada_folder)


def test_pixels_are_scaled_from_0_1_to_minus_1_1(backbone):
    from diffusers import VQModel

    codes = canvas(5).clamp(min=0)
    pixels = backbone.decode(codes)
    assert pixels.shape == (5, 3, 48, 80) and pixels.dtype == torch.float32
    model = VQModel.from_pretrained(backbone.vq_checkpoint, subfolder="vqvae")
    with torch.no_grad():
        bare = model.decode(codes[4].view(1, 3, 5), force_not_quantize=True, shape=(1, 3, 5, 4)).sample[0]
    torch.testing.assert_close((pixels[4] + 1) / 2, bare.clip(0, 1), atol=1e-5, rtol=0)
    assert pixels.min() == -1  # a random model's output is centred on 0: half of it lies below


def test_decoding_without_the_vq_model_is_one_line(backbone, tmp_path):
    bare = LuminaBackbone(backbone.model, backbone.tokenizer, vq_checkpoint=tmp_path, **SIZE)
    with pytest.raises(UserError, match="no vqvae/ there"):
        bare.decode(canvas(1).clamp(min=0))


def test_the_config_file_determines_what_is_loaded(lumina_folder):
    size = ["model.height=64", "model.width=96"]
    run = load_settings(CONFIGS, [f"model.checkpoint={lumina_folder}", "model.dtype=float32", *size])
    backbone = load_backbone(run.model)
    assert run.model.num_image_tokens == backbone.num_image_tokens == 24
    assert math.prod(backbone.decode(torch.zeros(1, 24, dtype=torch.int64)).shape) == 3 * 64 * 96
    assert backbone.model.get_base_model().activation_checkpointing


@pytest.mark.parametrize(
    "setting", ["height=500", "height=0", "height=-16", "width=1600000", "prompt_length=1000000", "lora.rank=10000000"]
)
def test_impossible_sizes_are_refused(setting):
    with pytest.raises(UserError, match=f"model.{setting.partition('=')[0]}"):
        load_settings(CONFIGS, [f"model.{setting}"])


def test_a_model_of_another_name_replaces_the_section():
    mmada = ROOT / "configs/model/mmada.yaml"
    assert load_settings([*CONFIGS, mmada]).model.name == "mmada"  # no height or width left over
    with pytest.raises(UserError, match="unknown model `lumin` \\(did you mean `lumina`"):
        load_settings([*CONFIGS], ["model.name=lumin"])
