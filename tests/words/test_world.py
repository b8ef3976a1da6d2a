"""The words world's prompts: what RL trains on, what is held out, what the base is trained on."""

from collections import Counter
from itertools import islice
from random import Random

import pytest

from htgrpo_ext.words import world


def test_words_are_lower_case_of_their_length_and_none_comes_twice():
    assert set(world.WORDS) == set(world.TASKS.values()) and max(world.WORDS) == world.LONGEST
    for length, words in world.WORDS.items():
        assert len(set(words)) == len(words) > 3 * world.MOST_HELD_OUT
        assert all(len(word) == length and set(word) <= set(world.LETTERS) for word in words)


@pytest.mark.parametrize("held_out", [0, 1, 40, 60])
def test_evaluation_words_are_never_trained_on_and_training_does_not_depend_on_their_number(held_out):
    train, evaluation = world.split_prompts(held_out)
    assert not {p["text"] for p in train} & {p["text"] for p in evaluation}
    assert Counter(p["tag"] for p in evaluation) == Counter({task: held_out for task in world.TASKS if held_out})
    assert train == world.split_prompts(60)[0]
    assert evaluation == [p for i, p in enumerate(world.split_prompts(60)[1]) if i % 60 < held_out]
    assert all(p["prompt"] == f'the word "{p["text"]}"' and len(p["text"]) == world.TASKS[p["tag"]] for p in train)


def test_more_words_than_the_base_leaves_out_cannot_be_held_out():
    with pytest.raises(ValueError, match="at most 60"):
        world.split_prompts(61)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_base_never_sees_a_held_out_word_by_chance_either(monkeypatch, share):
    kept = {p["text"] for p in world.split_prompts(60)[1]}
    monkeypatch.setattr(world, "WORD_SHARE", share)
    monkeypatch.setattr(world, "LETTERS", "aent")  # random letters make words often
    assert kept & {"ant", "eat", "net", "neat", "tent", "tan"}
    texts = list(islice(world.training_texts(Random(0)), 3000))
    assert not kept & set(texts)
    assert {len(text) for text in texts} == {3, 4, 5}


def test_half_of_the_pretraining_texts_are_words():
    words = {word for words in world.WORDS.values() for word in words}
    texts = list(islice(world.training_texts(Random(1)), 4000))
    assert 0.45 < sum(text in words for text in texts) / len(texts) < 0.55  # random letters are a word now and then
