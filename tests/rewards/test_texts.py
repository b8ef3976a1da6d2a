"""The edit distance, and the score that is made of it."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from htgrpo_ext.rewards.texts import edit_distance, similarity, wanted_text

LETTERS = "abc"
WORDS = ["".join(word) for length in range(5) for word in product(LETTERS, repeat=length)]  # 121, by length


def neighbours(word: str) -> set[str]:
    """All words of at most four letters that one edit makes of a word."""
    places = range(len(word) + 1)
    found = {word[:i] + word[i + 1 :] for i in places if i < len(word)}
    found |= {word[:i] + letter + word[i + 1 :] for i in places if i < len(word) for letter in LETTERS}
    found |= {word[:i] + letter + word[i:] for i in places if len(word) < 4 for letter in LETTERS}
    return found - {word}


def test_the_distance_is_the_length_of_the_shortest_path_of_edits():
    """Breadth first, from each of 121 words to all others. No shortest path needs a word longer than both ends."""
    for start in WORDS:
        steps, frontier, distance = 0, {start}, {start: 0}
        while frontier:
            steps += 1
            frontier = {word for near in frontier for word in neighbours(near)} - distance.keys()
            distance |= dict.fromkeys(frontier, steps)
        assert {word: edit_distance(start, word) for word in WORDS} == distance


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_the_distance_is_a_metric(a, b, c):
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a) <= max(len(a), len(b))
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


@pytest.mark.parametrize(
    ("found", "wanted", "score"),
    [
        ("river", "river", 1.0),
        ("Ri Ver", " river\n", 1.0),  # case and white space do not count
        ("rivet", "river", 1 - 1 / 5),
        ("kitten", "sitting", 1 - 3 / 7),  # the textbook's example
        ("", "river", 0.0),
        ("nothing of the kind", "river", 0.0),  # never below 0
        ("riverriver", "river", 0.0),  # Flow-GRPO's code gives 1
    ],
)
def test_the_score_is_one_less_the_distance_over_the_wanted_length(found, wanted, score):
    assert similarity(found, wanted) == score


def test_the_text_is_the_metadatas_then_what_is_quoted():
    assert wanted_text({"prompt": 'a sign "OPEN"', "text": "river"}) == "river"
    assert wanted_text({"prompt": 'a sign that says "OPEN"'}) == "OPEN"
    assert wanted_text({"prompt": "doors “In” and “Out”, not 'Up'"}) == "In Out"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ({"prompt": "a river"}, "prompt `a river`: no text to read"),
        ({"prompt": 'a sign " "'}, "no text to read"),
        ({"prompt": 'a sign "OPEN'}, "no text to read"),
        ({"prompt": 'a sign "OPEN"', "text": ""}, "its `text` is ''"),  # metadata win, even where they are wrong
        ({"prompt": 'a sign "OPEN"', "text": 7}, "its `text` is 7"),
        ({"prompt": 'a sign "OPEN"', "text": None}, "its `text` is None"),
    ],
)
def test_a_prompt_without_a_text_is_one_line(prompt, says):
    with pytest.raises(ValueError) as raised:
        wanted_text(prompt)
    assert says in str(raised.value) and "\n" not in str(raised.value)
