"""The micro world's verifier from pixels: exactly the codes that were drawn, or an error; never a wrong verdict."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.micro import world
from htgrpo_ext.micro.decoder import PALETTES, PATCH, all_patches, decode_codes
from htgrpo_ext.pixels import decode_png, encode_png, to_levels
from htgrpo_ext.rewards.micro import score_codes
from htgrpo_ext.rewards.scorers.micro import Scorer, read_codes

SCORER = Scorer(torch.device("cpu"))
CODES = st.integers(0, world.CODEBOOK_SIZE - 1)
OBJECTS = st.integers(0, world.NUM_OBJECT_CODES - 1)


def sent(codes_BN: torch.Tensor) -> list[torch.Tensor]:
    """Levels of each picture after its way over the wire."""
    return [decode_png(encode_png(levels)) for levels in to_levels(decode_codes(codes_BN))]


def test_patches_of_all_codes_differ_at_every_place_and_scene():
    """All 440 codes at all 64 places, objects before all ten scenes and lights; whole patches are compared."""
    seen: list[dict[bytes, int]] = [{} for _ in range(world.NUM_IMAGE_TOKENS)]
    for scene_light in range(len(PALETTES)):
        for of_place, patches in zip(seen, to_levels(all_patches(scene_light)).numpy(), strict=True):
            for code, patch in enumerate(patches):
                assert of_place.setdefault(patch.tobytes(), code) == code
    assert {len(of_place) for of_place in seen} == {10 * world.NUM_OBJECT_CODES + 80}  # the scene shows as well


@settings(max_examples=150)
@given(
    st.one_of(
        st.lists(CODES, min_size=64, max_size=64),
        st.lists(OBJECTS, min_size=64, max_size=64),  # no background: the guess is the first scene
        st.lists(st.one_of(OBJECTS, st.sampled_from([360, 368, 439])), min_size=64, max_size=64),  # ties
    )
)
def test_the_codes_of_any_canvas_are_read_back(codes):
    codes_N = torch.tensor(codes)
    assert read_codes(sent(codes_N[None])[0]).tolist() == codes


def test_every_code_at_every_place_is_read_back():
    """440 shifts of the vocabulary put each code to each place, half the places at a time; a scene fills the rest."""
    code_BN = (torch.arange(world.CODEBOOK_SIZE)[:, None] + torch.arange(64) * 7) % world.CODEBOOK_SIZE
    scene_B1 = world.NUM_OBJECT_CODES + torch.arange(world.CODEBOOK_SIZE)[:, None] % 80
    for parity in (0, 1):
        codes_BN = torch.where(torch.arange(64) % 2 == parity, code_BN, scene_B1)
        assert torch.equal(torch.stack([read_codes(levels) for levels in sent(codes_BN)]), codes_BN)


def test_scores_are_those_of_the_codes():
    """Scenes with every fault the world has, half of them right; the verifier on the codes is the judge."""
    prompts = [world.all_prompts(task)[i] for task in world.TASKS for i in (0, 31, 77)] * 2
    rng = Random(5)
    codes_BN = torch.tensor([world.draw_scene(prompt, rng, noise=0.5) for prompt in prompts])
    expected = score_codes(prompts, codes_BN, ["verdict", "partial"])
    scores = SCORER.score(prompts, sent(codes_BN))
    assert scores == {name: values.tolist() for name, values in expected.items()}
    assert 0 < sum(scores["verdict"]) < len(prompts)


def test_a_picture_with_one_changed_pixel_is_refused():
    rng = Random(1)
    prompt = world.all_prompts("counting")[3]
    levels = sent(torch.tensor([world.draw_scene(prompt, rng)]))[0]
    for _ in range(20):
        channel, y, x = rng.randrange(3), rng.randrange(128), rng.randrange(128)
        spoiled = levels.clone()
        spoiled[channel, y, x] ^= 1
        with pytest.raises(ValueError, match=rf"row {y // PATCH}, column {x // PATCH} is none of its codes"):
            SCORER.score([prompt], [spoiled])


def test_a_picture_of_another_origin_is_refused():
    meadow = torch.full((64,), world.background_code("meadow", "noon", world.SKY_HIGH))
    desert = torch.full((64,), world.background_code("desert", "dusk", world.SKY_HIGH))
    meadow[9] = desert[9] = world.object_code("plain circle", "red", 0)
    mixed, other = sent(torch.stack([meadow, desert]))
    mixed[:, PATCH : 2 * PATCH, PATCH : 2 * PATCH] = other[:, PATCH : 2 * PATCH, PATCH : 2 * PATCH]
    masked = meadow.clone()
    masked[3] = MASK
    prompt = world.all_prompts("counting")[0]
    for levels, says in [
        (mixed, "behind its objects is another scene"),
        (sent(masked[None])[0], "row 0, column 3 is none"),
        (other[:, :64], "3 x 64 x 128 levels"),
    ]:
        with pytest.raises(ValueError, match=says):
            SCORER.score([prompt], [levels])


@pytest.mark.parametrize(
    "change",
    [
        {"include": None},
        {"include": []},
        {"include": 3},
        {"include": ["star"]},
        {"include": [{"class": "plain star"}]},
        {"include": [{"class": "cat", "count": 1}]},
        {"include": [{"class": "plain star", "count": -1}]},
        {"include": [{"class": "plain star", "count": 1.5}]},
        {"include": [{"class": "plain star", "count": 1, "color": "mauve"}]},
        {"include": [{"class": "plain star", "count": 1, "position": ["above", 7]}]},
    ],
    ids=str,
)
def test_metadata_that_are_malformed_or_cannot_be_met_are_refused(change):
    prompt = {"prompt": "a star", "tag": "single_object", "include": [{"class": "plain star", "count": 1}]}
    pictures = sent(torch.full((1, 64), world.background_code("meadow", "noon", world.SKY_HIGH)))
    assert SCORER.score([prompt], pictures)["verdict"] == [0.0]
    for bad in (prompt | change, {"prompt": "a star"}):
        with pytest.raises(ValueError, match="^prompt `a star`: "):
            SCORER.score([bad], pictures)
