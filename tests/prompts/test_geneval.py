"""The GenEval-style training set: it contains no prompt of the benchmark, and metadata agree with the words."""

import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.authors import UPSTREAM, checkout
from helpers.command import run
from htgrpo_ext.errors import UserError
from htgrpo_ext.prompts.files import read_prompts
from htgrpo_ext.prompts.geneval import (
    contents,
    held_out_set,
    metadata,
    plain,
    requirement,
    training_set,
    write_training_set,
)
from htgrpo_ext.prompts.settings import PromptSource
from htgrpo_ext.rewards.geneval import CLASSES, COLORS, TASKS

CAT_DOG = {
    "tag": "two_object",
    "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}],
    "prompt": "a photo of a cat and a dog",
}

# --- an independent reading of the English -------------------------------------------------------------------

IRREGULAR = {"people": "person", "knives": "knife", "computer mice": "computer mouse"}
SAME = {"sheep", "skis", "scissors"}
SINGULAR = IRREGULAR | {name: name for name in SAME}
for name in set(CLASSES) - set(IRREGULAR.values()) - SAME:
    hisses = re.search("(s|sh|ch|x|z)$", name)
    SINGULAR[name + ("es" if hisses else "s")] = name
NOUN = "|".join(sorted(map(re.escape, CLASSES), key=len, reverse=True))
THING = rf"(?P<article{{0}}>an?) (?:(?P<color{{0}}>{'|'.join(COLORS)}) )?(?P<noun{{0}}>{NOUN})"
ONE = re.compile(THING.format(0))
TWO = re.compile(rf"{THING.format(0)} (?P<link>and|left of|right of|above|below) {THING.format(1)}")


def read(text: str) -> dict:
    """GenEval's metadata of an English prompt, from the words alone."""
    words = text.removeprefix("a photo of ")
    assert words != text
    number, _, rest = words.partition(" ")
    if number in ("two", "three", "four"):
        count = {"two": 2, "three": 3, "four": 4}[number]
        entry = {"class": SINGULAR[rest], "count": count}
        return {"tag": "counting", "include": [entry], "exclude": [entry | {"count": count + 1}], "prompt": text}
    match = ONE.fullmatch(words) or TWO.fullmatch(words)
    found = match.groupdict()
    things = []
    for i in "01" if "link" in found else "0":
        following = found[f"color{i}"] or found[f"noun{i}"]
        assert found[f"article{i}"] == ("an" if following[0] in "aeiou" else "a")
        color = {"color": found[f"color{i}"]} if found[f"color{i}"] else {}
        assert not (color and found[f"noun{i}"] == "person")
        things.append({"class": found[f"noun{i}"], "count": 1} | color)
    link = found.get("link")
    if link is None:
        tag = "colors" if "color" in things[0] else "single_object"
    elif link == "and":
        tag = "color_attr" if "color" in things[0] else "two_object"
        assert things[0]["class"] != things[1]["class"] and ("color" in things[0]) == ("color" in things[1])
    else:
        tag, things = "position", [things[1], things[0] | {"position": [link, 0]}]
    return {"tag": tag, "include": things, "prompt": text}


# --- what is written ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some():
    """A set that keeps out an invented benchmark of one prompt."""
    return training_set(3000, 0, [CAT_DOG])


@pytest.mark.parametrize("task", [task for task in TASKS if task != "color_attr"])
def test_every_prompt_agrees_with_its_metadata(task):
    prompts = [metadata(task, content) for content in contents(task)]
    assert all(read(prompt["prompt"]) == prompt and prompt["tag"] == task for prompt in prompts)
    assert len({prompt["prompt"] for prompt in prompts}) == len(prompts)


@given(st.lists(st.sampled_from(COLORS), min_size=2, max_size=2, unique=True), st.data())
def test_every_colour_attribution_agrees_with_its_metadata(colors, data):
    nouns = st.lists(st.sampled_from(CLASSES[1:]), min_size=2, max_size=2, unique=True)
    a, b = data.draw(nouns)
    prompt = metadata("color_attr", (colors[0], a, colors[1], b))
    assert read(prompt["prompt"]) == prompt


def test_there_are_as_many_prompts_as_combinations():
    assert len(CLASSES) == len(set(CLASSES)) == 80 and CLASSES[0] == "person"
    counts = {task: sum(1 for _ in contents(task)) for task in TASKS}
    assert counts == {
        "single_object": 80,
        "two_object": 80 * 79,
        "counting": 80 * 3,
        "colors": 79 * 10,
        "position": 80 * 79 * 4,
        "color_attr": (79 * 10) * (78 * 9),
    }


def test_words_and_articles_by_example():
    text = {content: metadata("counting", content)["prompt"] for content in contents("counting")}
    assert text[3, "bench"] == "a photo of three benches" and text[2, "sheep"] == "a photo of two sheep"
    assert text[2, "skis"] == "a photo of two skis" and text[4, "wine glass"] == "a photo of four wine glasses"
    assert metadata("colors", ("orange", "cat"))["prompt"] == "a photo of an orange cat"
    assert metadata("colors", ("red", "airplane"))["prompt"] == "a photo of a red airplane"
    both = metadata("position", ("umbrella", "left of", "apple"))
    assert both["prompt"] == "a photo of an umbrella left of an apple"
    assert both["include"][0]["class"] == "apple" and both["include"][1]["position"] == ["left of", 0]


def test_tasks_have_their_shares_and_small_ones_repeat_evenly(some):
    assert Counter(prompt["tag"] for prompt in some) == {  # 3000 / 18: 1 + 1 + 5 + 1 + 7 + 3
        "single_object": 167,
        "two_object": 166,
        "counting": 834,
        "colors": 166,
        "position": 1167,
        "color_attr": 500,
    }
    times = Counter(prompt["prompt"] for prompt in some)
    assert {task: {times[p["prompt"]] for p in some if p["tag"] == task} for task in TASKS} == {
        "single_object": {2, 3},
        "two_object": {1},
        "counting": {3, 4},
        "colors": {1},
        "position": {1},
        "color_attr": {1},
    }
    tags = [prompt["tag"] for prompt in some]
    assert all(len(set(tags[i : i + 100])) >= 4 for i in range(0, 3000, 100))  # mixed


def test_the_set_depends_on_the_seed_only(some):
    text = "".join(json.dumps(prompt) + "\n" for prompt in some)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "f0a0928d53d469041db511904521138ff8357e15b31345b994692a7c301ab713"
    )
    assert training_set(3000, 1, [CAT_DOG])[:10] != some[:10]


# --- what is kept out -----------------------------------------------------------------------------------------


def same(a: dict, b: dict) -> bool:
    return requirement(a) == requirement(b)


def test_one_requirement_in_other_words_is_equal():
    def position(*content):
        return metadata("position", content)

    assert same(metadata("two_object", ("cat", "dog")), metadata("two_object", ("dog", "cat")))
    assert same(position("cat", "left of", "dog"), position("dog", "right of", "cat"))
    assert same(position("cat", "below", "dog"), position("dog", "above", "cat"))
    assert not same(position("cat", "left of", "dog"), position("dog", "left of", "cat"))
    assert not same(position("cat", "left of", "dog"), position("cat", "above", "dog"))
    assert not same(position("cat", "left of", "dog"), metadata("two_object", ("cat", "dog")))
    swapped = [("red", "cat", "blue", "dog"), ("blue", "dog", "red", "cat"), ("blue", "cat", "red", "dog")]
    a, b, c = (metadata("color_attr", content) for content in swapped)
    assert same(a, b) and not same(a, c)
    assert not same(metadata("counting", (2, "cat")), metadata("counting", (3, "cat")))


def test_excluded_prompts_are_left_out_in_every_wording():
    every = {task: [metadata(task, content) for content in contents(task)] for task in ("two_object", "counting")}
    benchmark = random.Random(0).sample(every["two_object"], 3000) + every["counting"][:200]
    # The same words with other metadata, in capitals, and the same metadata with other words.
    benchmark += [{"tag": "x", "include": [{"class": "x", "count": 1}], "prompt": " A photo  of a RED bus."}]
    benchmark += [metadata("colors", ("blue", "bus")) | {"prompt": "A bus, painted blue"}]
    found = training_set(20_000, 0, benchmark)
    pairs = {frozenset(entry["class"] for entry in p["include"]) for p in benchmark[:3000]}
    assert pairs.isdisjoint(frozenset(e["class"] for e in p["include"]) for p in found if p["tag"] == "two_object")
    assert {p["prompt"] for p in found if p["tag"] == "counting"} == {p["prompt"] for p in every["counting"][200:]}
    colored = {p["prompt"] for p in found if p["tag"] == "colors"}
    assert len(colored) == 788 and not colored & {"a photo of a red bus", "a photo of a blue bus"}
    assert plain(" A photo  of a RED bus.") == "a photo of a red bus"


def test_a_task_with_nothing_left_gives_its_share_to_the_others():
    singles = [metadata("single_object", content) for content in contents("single_object")]
    found = Counter(prompt["tag"] for prompt in training_set(1700, 0, singles))
    assert found == {"two_object": 100, "counting": 500, "colors": 100, "position": 700, "color_attr": 300}


def benchmark_file() -> Path:
    """GenEval's own prompts: beside the project, or MaskGRPO's copy."""
    beside, file = (
        UPSTREAM.parents[1] / "shared/data/geneval_prompts.jsonl",
        "dataset/GenEval/evaluation_metadata.jsonl",
    )
    return beside if beside.is_file() else checkout("UPSTREAM_CHECKOUT", file) / file


def test_a_whole_set_contains_no_prompt_of_the_benchmark(tmp_path):
    """By words, and by what is asked, worked out without the code under test."""

    def asked(prompt):
        things = [(e["class"], e["count"], e.get("color")) for e in prompt["include"]]
        facts = {frozenset(things)}
        for entry, thing in zip(prompt["include"], things, strict=True):
            if "position" in entry:
                relation, other = entry["position"]
                across, sign = relation in ("left of", "right of"), relation in ("left of", "above")
                facts.add((across, (thing, things[other])[:: 1 if sign else -1]))
        return frozenset(facts)

    path = benchmark_file()
    benchmark = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(benchmark) == 553
    write_training_set(50_000, 0, path, tmp_path / "set.jsonl")
    found = [line.prompt for line in read_prompts(PromptSource(format="geneval", path=tmp_path / "set.jsonl"))]
    assert len(found) == 50_000
    assert {p["prompt"].lower() for p in benchmark}.isdisjoint(p["prompt"].lower() for p in found)
    assert {asked(p) for p in benchmark}.isdisjoint(asked(p) for p in found)
    # Its metadata are ours but where its plurals are no English.
    ours = {p["prompt"]: p for task in TASKS for p in (metadata(task, c) for c in contents(task))}
    odd = {"toothbrushs", "persons", "sheeps", "sandwichs", "knifes", "benchs"}
    assert all(ours.get(p["prompt"]) == p for p in benchmark if p["prompt"].split()[-1] not in odd)


def test_without_the_benchmark_nothing_is_written(monkeypatch, tmp_path, capsys):
    out = tmp_path / "set.jsonl"
    assert run(monkeypatch, "prompts", "geneval-train", "--n", "5", "--out", str(out), "--exclude", "nowhere") == 2
    assert capsys.readouterr().err.startswith("error: nowhere: no such file; it lists GenEval's prompts")
    (tmp_path / "words.txt").write_text("a photo of a bench\n")
    with pytest.raises(UserError, match="words.txt:1: not GenEval metadata"):
        write_training_set(5, 0, tmp_path / "words.txt", out)
    assert not list(tmp_path.glob("set*"))
    (tmp_path / "b.jsonl").write_text(json.dumps(CAT_DOG))
    with pytest.raises(UserError, match=r"words.txt/set: cannot be written .File exists; --out."):
        write_training_set(5, 0, tmp_path / "b.jsonl", tmp_path / "words.txt" / "set")


def test_a_run_reads_the_file_that_the_command_writes(some, monkeypatch, tmp_path, capsys):
    (tmp_path / "b.jsonl").write_text(json.dumps(CAT_DOG))
    out = tmp_path / "new" / "set.jsonl"
    arguments = ["--n", "3000", "--out", str(out), "--exclude", str(tmp_path / "b.jsonl")]
    assert run(monkeypatch, "prompts", "geneval-train", *arguments) == 0
    assert [line.prompt for line in read_prompts(PromptSource(format="geneval", path=out))] == some
    assert capsys.readouterr().out.endswith(f"set.jsonl: 3,000 lines, without the 1 prompts of {tmp_path}/b.jsonl\n")


# --- held out --------------------------------------------------------------------------------------------------


def test_held_out_prompts_are_none_of_the_known_in_any_wording_and_the_tasks_take_turns():
    """Half of a first set is known by its metadata, half by its words alone; what is left is free of both."""
    first = held_out_set(60, 3, [])
    assert [prompt["tag"] for prompt in first[:6]] == list(TASKS)
    assert all(prompt == read(prompt["prompt"]) for prompt in first)
    reordered = [prompt | {"include": prompt["include"][::-1]} for prompt in first[:30] if prompt["tag"] != "position"]
    shouted = [{"prompt": f"  {prompt['prompt'].upper()}."} for prompt in first[30:]]
    left = held_out_set(60, 3, [*reordered, *shouted])
    assert len({requirement(prompt) for prompt in left}) == 60
    known = {requirement(prompt) for prompt in reordered} | {requirement(prompt) for prompt in first[30:]}
    assert not known & {requirement(prompt) for prompt in left}
    assert len({requirement(p) for p in left} & {requirement(p) for p in first}) == 60 - 30 - len(reordered)
    other = held_out_set(60, 4, [])
    assert other != first == held_out_set(60, 3, [])


def test_held_out_prompts_of_a_task_that_is_all_trained_on_are_left_out():
    counting = [metadata("counting", content) for content in contents("counting")]
    assert "counting" not in {prompt["tag"] for prompt in held_out_set(50, 0, counting)}


def test_more_held_out_prompts_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr("htgrpo_ext.prompts.geneval.contents", lambda task: contents("single_object"))
    monkeypatch.setattr("htgrpo_ext.prompts.geneval.metadata", lambda task, content: metadata("single_object", content))
    with pytest.raises(UserError, match="^only 79 prompts are neither GenEval's nor trained on, fewer than 90"):
        held_out_set(90, 0, [metadata("single_object", ("dog",))])
