"""Prompts that ask for a text in the picture, such as `a wooden sign that says "OPEN"`, with the text in the metadata.

Half of them have one word and half two, in capitals, small letters or capitalised. Every fourth word is held out: no
training prompt has one of them, whatever its seed. Number of distinct prompts:

                 training   held out
    one_word        6,660      2,220
    two_words     732,600     79,920
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from itertools import islice
from math import prod
from pathlib import Path
from typing import Literal

import torch

from htgrpo_ext.core.randomness import derived_generator
from htgrpo_ext.errors import UserError
from htgrpo_ext.files import write_atomically
from htgrpo_ext.rewards.texts import plain, wanted_text

Split = Literal["train", "held-out"]
TASKS = {"one_word": 1, "two_words": 2}
TRAINED = 10_000  # prompts of a run that names no file of them

WORDS = """
anchor autumn bakery balloon basket beacon bicycle blossom bottle branch bread breeze bridge bubble butter button cactus
camera candle canvas carpet castle cherry cinema circus closed clover coffee cookie copper cotton crystal daisy desert
dragon eagle engine family farmer feather finger flower forest galaxy garden ginger guitar hammer harbor honey hotel
island jacket jungle kitchen ladder lantern legend lemon letter library lizard magnet marble market meadow mirror monkey
mountain museum music needle ocean office open orange orchard oyster palace parrot pencil pepper pirate pizza planet
pocket poetry potato pumpkin puzzle rabbit ribbon river rocket sailor salmon school secret shadow shelter shop signal
silver soccer spider spring square stable station statue stream street sugar summer sunset supper tailor target teapot
temple theater thunder ticket tiger timber tomato tower travel tunnel turtle valley velvet village violet violin
volcano walnut water welcome whale willow window winter wizard wonder yellow zebra zigzag
""".split()  # noqa: SIM905, a list of strings would be ten times as long

SCENES = (
    'a wooden sign that says "{}"',
    'a neon sign on a brick wall that reads "{}"',
    'a chalkboard in front of a cafe with the word "{}" on it',
    'the cover of an old book titled "{}"',
    'a white mug with the text "{}" printed on it',
    'a road sign beside a highway that says "{}"',
    'a poster on a subway wall that reads "{}"',
    'a birthday cake with "{}" written in icing',
    'a T-shirt with the text "{}" across the chest',
    'the word "{}" painted on a rusty metal door',
    'a shop window with "{}" in gold letters',
    'a sheet of paper with "{}" in black handwriting',
    'a street at night, and a bright billboard that says "{}"',
    'a cardboard box with a label that reads "{}"',
    'a flag in the wind with the text "{}"',
    'the word "{}" drawn in the sand of a beach',
    'a stone above a gate with "{}" carved into it',
    'a laptop whose screen shows the text "{}"',
    'a hot-air balloon with "{}" on its side',
    'a stamp with the text "{}" under a small ship',
)
CASES = (str.upper, str.lower, str.capitalize)


@cache
def words_of(split: Split) -> tuple[str, ...]:
    """The words of one half; no word is in both."""
    return tuple(word for i, word in enumerate(WORDS) if (i % 4 == 3) == (split == "held-out"))


def make_prompt(task: str, place: int, split: Split) -> dict:
    """Prompt number `place` of a task, from 0; `size` says how many there are."""
    place, scene = divmod(place, len(SCENES))
    place, case = divmod(place, len(CASES))
    words, chosen = list(words_of(split)), []
    for _ in range(TASKS[task]):
        place, i = divmod(place, len(words))
        chosen.append(words.pop(i))  # no word comes twice
    text = " ".join(map(CASES[case], chosen))
    return {"tag": task, "text": text, "prompt": SCENES[scene].format(text)}


def size(task: str, split: Split) -> int:
    """How many prompts of a task there are."""
    words = len(words_of(split))
    return len(SCENES) * len(CASES) * prod(range(words, words - TASKS[task], -1))


def ordered(seed: int, split: Split) -> Iterator[dict]:
    """All prompts in random order, the tasks in turn while they last."""
    places = {}
    for task in TASKS:
        generator = derived_generator(seed, "text rendering", split, task)
        places[task] = iter(torch.randperm(size(task, split), generator=generator).tolist())
    while places:
        for task, left in list(places.items()):
            if (place := next(left, None)) is None:
                del places[task]
            else:
                yield make_prompt(task, place, split)


def text_prompts(count: int, seed: int, split: Split) -> list[dict]:
    """The first `count` prompts. Raises UserError for more than there are."""
    most = sum(size(task, split) for task in TASKS)
    if count > most:
        raise UserError(f"{count:,} prompts: there are only {most:,} that differ (--n)")
    return list(islice(ordered(seed, split), count))


def held_out_texts(count: int, seed: int, trained: Iterable[dict]) -> list[dict]:
    """`count` prompts of held-out words, none with a text of `trained`. Raises UserError if fewer are left."""
    texts = set()
    for prompt in trained:
        with suppress(ValueError):  # it has none
            texts.add(plain(wanted_text(prompt)))
    free = (prompt for prompt in ordered(seed, "held-out") if plain(prompt["text"]) not in texts)
    chosen = list(islice(free, count))
    if len(chosen) < count:
        raise UserError(f"only {len(chosen)} held-out texts are not trained on, fewer than {count} (eval)")
    return chosen


def write_text_prompts(count: int, seed: int, split: Split, out: Path) -> str:
    """Write the prompts as JSON lines; returns what was written in a few words. Raises UserError."""
    prompts = text_prompts(count, seed, split)
    if out.exists():
        raise UserError(f"{out}: is there already (--out)")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, "".join(json.dumps(prompt) + "\n" for prompt in prompts))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}; --out)") from None
    texts = len({prompt["text"] for prompt in prompts})
    return f"{out}: {len(prompts):,} prompts, {texts:,} texts of {len(words_of(split))} words"
