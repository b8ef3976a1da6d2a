"""The micro world: prompts, scenes and the verifier agree with each other."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htgrpo_ext.backbones.micro.backbone import WORD_IDS
from htgrpo_ext.micro import world
from htgrpo_ext.micro.verifier import detect, verify

EVERY_PROMPT = [prompt for task in world.TASKS for prompt in world.all_prompts(task)]
prompts = st.sampled_from(EVERY_PROMPT)
seeds = st.integers(0, 2**32)
EMPTY = [world.background_code("meadow", "noon", world.SKY_HIGH)] * world.NUM_IMAGE_TOKENS


def put(codes: list[int], class_name: str, color: str, row: int, column: int, quadrants=range(4)) -> list[int]:
    codes = list(codes)
    for q in quadrants:
        codes[(row + q // 2) * world.GRID + column + q % 2] = world.object_code(class_name, color, q)
    return codes


def of_task(task: str) -> world.Prompt:
    return world.all_prompts(task)[0]


def test_object_codes_and_their_parts_are_one_to_one():
    parts = [world.split_object_code(code) for code in range(world.NUM_OBJECT_CODES)]
    assert len(set(parts)) == world.NUM_OBJECT_CODES
    assert [world.object_code(*p) for p in parts] == list(range(world.NUM_OBJECT_CODES))
    with pytest.raises(ValueError, match="not an object's"):
        world.split_object_code(world.NUM_OBJECT_CODES)


def test_code_factors_differ_for_all_codes():
    assert len({world.code_factors(code) for code in range(world.CODEBOOK_SIZE)}) == world.CODEBOOK_SIZE


@given(prompts, seeds, st.sampled_from(["canonical", "free"]))
def test_a_scene_without_noise_satisfies_its_prompt(prompt, seed, placement):
    codes = world.draw_scene(prompt, Random(seed), noise=0.0, placement=placement)
    assert len(codes) == world.NUM_IMAGE_TOKENS and all(0 <= code < world.CODEBOOK_SIZE for code in codes)
    verdict = verify(prompt, codes)
    assert verdict.correct and verdict.partial == 1.0 and verdict.reason == ""


@given(prompts, seeds, st.sampled_from(["canonical", "free"]))
def test_a_scene_with_a_fault_fails_its_prompt(prompt, seed, placement):
    verdict = verify(prompt, world.draw_scene(prompt, Random(seed), noise=1.0, placement=placement))
    assert not verdict.correct and verdict.partial < 1.0 and verdict.reason


@given(prompts, st.lists(st.integers(0, world.CODEBOOK_SIZE - 1), min_size=64, max_size=64), seeds)
def test_partial_credit_is_a_share_and_whole_exactly_when_correct(prompt, junk, seed):
    scene = world.draw_scene(prompt, Random(seed))
    rng = Random(seed)
    codes = [rng.choice(pair) for pair in zip(scene, junk, strict=True)]
    verdict = verify(prompt, codes)
    assert 0.0 <= verdict.partial <= 1.0
    assert (verdict.partial == 1.0) == verdict.correct


def test_three_matching_tokens_of_four_are_an_object_and_two_are_not():
    assert [o.class_name for o in detect(put(EMPTY, "plain star", "red", 2, 3, quadrants=(0, 1, 3)))] == ["plain star"]
    assert detect(put(EMPTY, "plain star", "red", 2, 3, quadrants=(0, 3))) == []


def test_quadrants_in_wrong_places_are_no_object():
    codes = list(EMPTY)
    for place, quadrant in ((0, 3), (1, 2), (8, 1), (9, 0)):
        codes[place] = world.object_code("plain star", "red", quadrant)
    assert detect(codes) == []


def test_an_object_of_two_colours_has_none():
    codes = put(put(EMPTY, "plain star", "red", 2, 3), "plain star", "blue", 2, 3, quadrants=(0, 1))
    assert [(o.class_name, o.color, o.anchor) for o in detect(codes)] == [("plain star", None, (2, 3))]


def test_a_surplus_object_fails_but_has_partial_credit():
    prompt = of_task("single_object")
    name = prompt["include"][0]["class"]
    codes = put(put(EMPTY, name, "red", 0, 0), name, "red", 4, 4)
    verdict = verify(prompt, codes)
    assert not verdict.correct and verdict.reason == "1 surplus" and verdict.partial == 0.5  # class 1, surplus 0


def test_swapped_positions_fail():
    prompt = world.make_prompt(
        "position",
        [{"class": "plain star", "count": 1}, {"class": "plain heart", "count": 1, "position": ["left of", 0]}],
        "sea",
    )
    assert prompt["prompt"] == "a plain heart left of a plain star by the sea"
    right = put(put(EMPTY, "plain heart", "red", 3, 1), "plain star", "red", 3, 5)
    wrong = put(put(EMPTY, "plain heart", "red", 3, 5), "plain star", "red", 3, 1)
    assert verify(prompt, right).correct and not verify(prompt, wrong).correct


def test_evaluation_prompts_are_never_trained_on_and_every_task_has_both():
    train, evaluation = world.split_prompts()
    for task in world.TASKS:
        held_out = {p["prompt"] for p in evaluation if p["tag"] == task}
        trained_on = {p["prompt"] for p in train if p["tag"] == task}
        assert len(held_out) == 40 and trained_on and not held_out & trained_on


def test_the_colours_task_holds_out_class_and_colour_pairs():
    train, evaluation = world.split_prompts()
    pair = {s: {(p["include"][0]["class"], p["include"][0]["color"]) for p in split if p["tag"] == "colors"}
            for s, split in (("train", train), ("evaluation", evaluation))}  # fmt: skip
    assert not pair["train"] & pair["evaluation"]


def test_the_split_is_always_the_same():
    assert world.split_prompts() == world.split_prompts()


def test_every_prompt_is_in_the_vocabulary_and_fits_the_model():
    words = [prompt["prompt"].split() for prompt in EVERY_PROMPT]
    assert max(len(w) for w in words) <= 12
    assert {word for w in words for word in w} <= set(WORD_IDS)
