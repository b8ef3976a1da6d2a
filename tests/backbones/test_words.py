"""The words model and its backbone: layout of a prompt, positions, pictures, pretraining."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from helpers.command import run
from helpers.paths import ROOT
from htgrpo_ext.backbones.micro.model import MicroConfig, rotary_tables
from htgrpo_ext.backbones.words import pretrain as pretraining
from htgrpo_ext.backbones.words.backbone import PAD, WordsBackbone, encode_letters, read_config
from htgrpo_ext.backbones.words.model import WordsConfig, WordsModel
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.errors import UserError
from htgrpo_ext.words import tokenizer, world

LORA = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "ff_out"]}
TEXTS = ['the word "cat"', 'the word "river"', ""]


@pytest.fixture(scope="module")
def codebook():
    return torch.randint(0, 256, (world.CODEBOOK_SIZE, 16), generator=torch.Generator().manual_seed(0)).float()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, codebook):
    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = WordsModel(WordsConfig(hidden_size=32, num_layers=2, num_heads=2, ffn_size=48))
    model.codebook.copy_(codebook)
    model.save_pretrained(folder)
    return folder


def masked_logits(backbone, prompts):
    codes = torch.full((len(prompts.ids_BL), 96), MASK)
    with torch.no_grad():
        return backbone.image_logits(prompts, codes, codes == MASK).view(len(codes), 96, -1)


def test_the_micro_models_rotary_tables_have_not_moved_by_a_bit():
    text, cell = torch.arange(14), torch.arange(8) + 14
    rows = torch.cat([text, cell.repeat_interleave(8)])
    columns = torch.cat([text, cell.repeat(8)])
    frequencies = 100.0 ** (-torch.arange(8) / 8)
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=-1)
    cos, sin = rotary_tables(MicroConfig())
    # Of four heads; in each, the first half is turned by minus the sine.
    assert torch.equal(cos, angles.cos().repeat(1, 8))
    assert torch.equal(sin, torch.cat([-angles.sin(), angles.sin()], dim=-1).repeat(1, 4))


def test_letters_lie_in_the_middle_row_over_the_columns_of_a_word_of_full_length():
    positions = WordsConfig().positions()
    assert positions.shape == (7 + 96, 2)
    assert positions[:7, 0].tolist() == [2.5] * 7
    # Five letters share 16 columns: the first takes 0 to 3.2, and the middle of that is column 1.1.
    assert positions[:7, 1].tolist() == pytest.approx([-2.1, 1.1, 4.3, 7.5, 10.7, 13.9, 17.1])
    assert positions[7:].tolist() == [[row, column] for row in range(6) for column in range(16)]


def test_a_prompt_is_its_letters_each_at_its_own_place():
    prompts = encode_letters(TEXTS)
    a = 3
    assert prompts.ids_BL.tolist() == [
        [1, a + 2, a, a + 19, PAD, PAD, 2],
        [1, a + 17, a + 8, a + 21, a + 4, a + 17, 2],
        [1, PAD, PAD, PAD, PAD, PAD, 2],
    ]
    assert prompts.attention_BL.tolist() == [[i != PAD for i in row] for row in prompts.ids_BL.tolist()]
    assert [sum(row) for row in prompts.words_BL.tolist()] == [3, 5, 0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('the word "caf\u00e9"', "unknown character `\u00e9` (the words world knows a to z)"),
        ('the word "River"', "unknown character `R`"),
        ('the word "two words"', "unknown character ` `"),
        ('the word "garden"', "6 letters, but the model reads at most 5"),
        ('the word ""', 'is not of the form the word "river"'),
        ("river", 'is not of the form the word "river"'),
        ('the word "river', 'is not of the form the word "river"'),
    ],
)
def test_a_prompt_that_cannot_be_spelled_is_refused_in_one_line(text, line):
    with pytest.raises(UserError) as caught:
        encode_letters(["", text])
    assert repr(text) in str(caught.value) and line in str(caught.value) and "\n" not in str(caught.value)


def test_letters_and_their_order_change_logits_and_pads_do_not(checkpoint):
    backbone = WordsBackbone.load(checkpoint)
    prompts = backbone.encode_prompts(['the word "cat"', 'the word "act"', 'the word "cab"'])
    logits = masked_logits(backbone, prompts)
    assert (logits[0] - logits[1]).abs().max() > 1e-3 and (logits[0] - logits[2]).abs().max() > 1e-3
    other = prompts._replace(ids_BL=prompts.ids_BL.masked_fill(prompts.ids_BL == PAD, 9))
    torch.testing.assert_close(masked_logits(backbone, other), logits, atol=1e-6, rtol=0)


def test_every_position_has_different_logits(checkpoint):
    logits = masked_logits(*(lambda b: (b, b.encode_prompts(TEXTS[:1])))(WordsBackbone.load(checkpoint)))[0]
    assert (torch.cdist(logits, logits) + torch.eye(96)).min() > 1e-5


@pytest.mark.parametrize("lora", [None, LORA])
def test_training_moves_the_model_but_neither_its_reference_nor_its_pictures(checkpoint, codebook, lora, tmp_path):
    backbone = WordsBackbone.load(checkpoint, lora)
    prompts, codes_BN = backbone.encode_prompts(TEXTS), torch.arange(192).view(2, 96)
    before, pixels = masked_logits(backbone, prompts), backbone.decode(codes_BN)
    assert pixels.shape == (2, 3, 24, 64)
    levels_BHW = ((pixels + 1) * 127.5).round()
    assert torch.equal(levels_BHW[:, 0], tokenizer.decode(codes_BN, codebook))
    assert torch.equal(levels_BHW[:, 0], levels_BHW[:, 2])
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert (masked_logits(backbone, prompts) - before).abs().max() > 1e-3
    assert torch.equal(backbone.decode(codes_BN), pixels)
    with backbone.reference():
        torch.testing.assert_close(masked_logits(backbone, prompts), before, atol=0, rtol=0)
    if lora is None:
        backbone.model.save_pretrained(tmp_path)
        again = WordsBackbone.load(tmp_path, frozen=True)
        assert torch.equal(again.decode(codes_BN), pixels)
        assert torch.equal(masked_logits(again, prompts), masked_logits(backbone, prompts))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model_type": "htgrpo-micro"}, "a model of type 'htgrpo-micro', not the words model"),
        ({"rows": 8}, "rows is 8; the world has 6"),
        ({"num_heads": 3}, "heads do not divide evenly (hidden_size 32, num_heads 3)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(checkpoint, tmp_path, change, line):
    keys = yaml.safe_load((checkpoint / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(str(keys).replace("'", '"').replace("None", "null"))
    with pytest.raises(UserError, match=re.escape(line)):
        read_config(tmp_path)
    with pytest.raises(UserError, match="pretrain-words"):
        read_config(tmp_path / "nothing")


def test_the_committed_bases_have_one_codebook_of_whole_grey_levels():
    fixed, free = (WordsBackbone.load(ROOT / "assets" / name, frozen=True) for name in ("words-fixed", "words-free"))
    assert torch.equal(fixed.codebook, free.codebook)
    assert torch.equal(fixed.codebook, fixed.codebook.round().clamp(0, 255))
    assert len(fixed.codebook.unique(dim=0)) == world.CODEBOOK_SIZE


def small(monkeypatch, codebook):
    tiny = dict(hidden_size=32, num_layers=1, num_heads=2, ffn_size=32)
    monkeypatch.setattr(pretraining, "WordsConfig", lambda: WordsConfig(**tiny))
    monkeypatch.setattr(pretraining, "BATCH_SIZE", 2)
    monkeypatch.setattr(pretraining, "make_codebook", lambda _: codebook)


def test_pretraining_twice_gives_the_same_weights_and_leaves_the_global_generator_alone(
    monkeypatch, codebook, tmp_path
):
    small(monkeypatch, codebook)
    state = torch.random.get_rng_state()
    for name in ("a", "b"):
        pretraining.pretrain(tmp_path / name, seed=1, steps=2, free=name == "a")
    assert torch.equal(torch.random.get_rng_state(), state)
    pretraining.pretrain(tmp_path / "c", seed=1, steps=2, free=False)
    fixed, again = (WordsModel.from_pretrained(tmp_path / name).state_dict() for name in ("b", "c"))
    assert all(torch.equal(fixed[name], again[name]) for name in fixed)
    assert torch.equal(fixed["codebook"], codebook)


def test_a_checkpoint_on_the_way_is_that_of_a_training_of_so_many_steps(monkeypatch, codebook, tmp_path):
    small(monkeypatch, codebook)
    steps = pretraining.train(pretraining.fresh_model(1, codebook), 1, 9, free=True)
    mean = [next(steps) for _ in range(3)][-1][0]
    pretraining.pretrain(tmp_path / "three", seed=1, steps=3, free=True)
    saved = WordsModel.from_pretrained(tmp_path / "three").state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in mean.state_dict().items())


def test_a_free_base_begins_at_the_fixed_place_and_ends_free(monkeypatch, codebook):
    seen = []

    def pictures(rng, free, count):
        seen.append(free)
        return [""] * count, torch.zeros(count, world.HEIGHT, world.WIDTH, dtype=torch.uint8)

    small(monkeypatch, codebook)
    monkeypatch.setattr(pretraining, "training_pictures", pictures)
    monkeypatch.setattr(pretraining, "FIXED_UNTIL", 1)
    monkeypatch.setattr(pretraining, "FREE_FROM", 3)
    for free in (True, False):
        list(pretraining.train(pretraining.fresh_model(1, codebook), 1, 5, free))
    assert seen == [0, 0, 0.5, 1, 1, 0, 0, 0, 0, 0]


def test_like_patches_begin_with_like_vectors(codebook):
    codebook_VD = codebook.clone()
    codebook_VD[1] = (codebook_VD[0] + 1).clamp(max=255)
    vectors = pretraining.fresh_model(0, codebook_VD).lm_head.weight
    distances = torch.cdist(vectors[:1], vectors)[0]
    assert distances[2:].min() > distances[1] > 0


def test_pretraining_says_before_it_trains_that_it_cannot_write(monkeypatch, tmp_path, capsys):
    (tmp_path / "config.json").write_text("mine")
    monkeypatch.setattr(pretraining, "make_codebook", lambda _: pytest.fail("it trained"))
    assert run(monkeypatch, "pretrain-words", "--out", str(tmp_path), "--steps", "2") == 2
    assert re.fullmatch("error: .*exists already; give another --out.*\n", capsys.readouterr().err)


def test_a_checkpoint_is_trained_further_from_its_mean_at_the_rates_that_follow(monkeypatch, codebook, tmp_path):
    small(monkeypatch, codebook)
    pretraining.pretrain(tmp_path / "two", seed=1, steps=2, free=True)
    before = WordsModel.from_pretrained(tmp_path / "two").state_dict()
    seen = []
    monkeypatch.setattr(pretraining, "freedom", lambda step: seen.append(step) or 0.0)
    pretraining.pretrain(tmp_path / "five", seed=1, steps=5, free=True, further=tmp_path / "two", done=2)
    assert seen == [2, 3, 4]
    monkeypatch.setattr(pretraining, "rate_factor", lambda step, done: 0.0)
    pretraining.pretrain(tmp_path / "same", seed=1, steps=5, free=True, further=tmp_path / "two", done=2)
    after, same = (WordsModel.from_pretrained(tmp_path / name).state_dict() for name in ("five", "same"))
    assert all(torch.equal(same[name], before[name]) for name in before)
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])


def test_rates_warm_up_again_and_then_fall_as_if_nothing_had_stopped():
    rates = [pretraining.rate_factor(step) for step in range(7000)]
    further = [pretraining.rate_factor(step, 6000) for step in range(6000, 7000)]
    assert further[0] == 1 / pretraining.WARMUP and rates[0] == 1 / pretraining.WARMUP
    assert further[pretraining.WARMUP :] == rates[6000 + pretraining.WARMUP :]


@pytest.mark.parametrize("more", [("--done", "1"), ("--further", "two"), ("--further", "two", "--done", "2")])
def test_steps_that_do_not_fit_are_refused(monkeypatch, tmp_path, capsys, more):
    monkeypatch.setattr(pretraining, "make_codebook", lambda _: pytest.fail("it trained"))
    assert run(monkeypatch, "pretrain-words", "--out", str(tmp_path / "out"), "--steps", "2", *more) == 2
    assert "nothing can be trained further; --done goes with --further" in capsys.readouterr().err


@pytest.mark.parametrize("difficulty", ["fixed", "free"])
def test_the_command_passes_everything_on(monkeypatch, tmp_path, difficulty):
    calls = []
    monkeypatch.setattr(pretraining, "pretrain", lambda *args: calls.append(args))
    arguments = ["--out", str(tmp_path), "--seed", "4", "--steps", "7", "--difficulty", difficulty]
    assert run(monkeypatch, "pretrain-words", *arguments, "--further", "base", "--done", "3") == 0
    assert calls == [(tmp_path, 4, 7, difficulty == "free", Path("base"), 3)]
