"""Prompts in GenEval's style and format that are none of GenEval's own: a training set, and prompts held out from one.

GenEval's words (github.com/djghosh13/geneval): 80 COCO classes, ten colours (persons have none), counts of two to
four, four relations. Number of distinct prompts, and without the benchmark's 553:

    single_object         80        0   the benchmark contains every class
    two_object         6,320    6,122   both orders of a pair
    counting             240      160
    colors               790      696
    position          25,280   25,082
    color_attr       554,580  554,380

A benchmark prompt is excluded in every wording: with its two objects in the other order, or with "left of" reversed
to "right of". The shares of the tasks are those of the training set of github.com/yifan123/flow_grpo
(dataset/merge_genevaltask.py), 7 position : 5 counting : 3 color_attr : 1 colors : 1 two_object. A task with too few
prompts for its share repeats all of them equally often. At 50,000 lines these are `counting` (92 times each) and
`colors` (4 or 5 times).

Singulars are the benchmark's ("a scissors"). Plurals are correct English ("three benches"); some of the benchmark's
are not ("three benchs").
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice, permutations, product
from pathlib import Path

import torch

from htgrpo_ext.core.randomness import derived_generator, derived_seed
from htgrpo_ext.errors import UserError
from htgrpo_ext.prompts.files import read_prompts
from htgrpo_ext.prompts.settings import PromptSource
from htgrpo_ext.rewards.geneval import CLASSES, COLORS, RELATIONS, TASKS

SHARES = {"single_object": 1, "two_object": 1, "counting": 5, "colors": 1, "position": 7, "color_attr": 3}
NUMBERS = {2: "two", 3: "three", 4: "four"}
PLURALS = {"person": "people", "sheep": "sheep", "skis": "skis", "scissors": "scissors", "knife": "knives"}
PLURALS |= {"computer mouse": "computer mice"}
OPPOSITE = {"right of": "left of", "below": "above"}


def plural(name: str) -> str:
    """The plural of a class."""
    return PLURALS.get(name) or name + ("es" if name.endswith(("s", "ch", "sh")) else "s")


def one(words: str) -> str:
    """The words with their indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def contents(task: str) -> Iterable[tuple]:
    """The contents that prompts of a task can have, in a fixed order; see `metadata`."""
    colored = [name for name in CLASSES if name != "person"]
    match task:
        case "single_object":
            return product(CLASSES)
        case "two_object":
            return permutations(CLASSES, 2)
        case "counting":
            return product(NUMBERS, CLASSES)
        case "colors":
            return product(COLORS, colored)
        case "position":
            return ((a, relation, b) for (a, b), relation in product(permutations(CLASSES, 2), RELATIONS))
        case "color_attr":
            pairs = product(permutations(COLORS, 2), permutations(colored, 2))
            return ((color_a, a, color_b, b) for (color_a, color_b), (a, b) in pairs)
    raise ValueError(f"no task {task}")


def metadata(task: str, content: tuple) -> dict:
    """GenEval's metadata of one prompt, keys in its order."""
    exclude = []
    match task, content:
        case "single_object", (a,):
            include, text = [_object(a)], one(a)
        case "two_object", (a, b):
            include, text = [_object(a), _object(b)], f"{one(a)} and {one(b)}"
        case "counting", (count, a):
            include, text = [_object(a, count)], f"{NUMBERS[count]} {plural(a)}"
            exclude = [_object(a, count + 1)]
        case "colors", (color, a):
            include, text = [_object(a) | {"color": color}], one(f"{color} {a}")
        case "position", (a, relation, b):
            include, text = [_object(b), _object(a) | {"position": [relation, 0]}], f"{one(a)} {relation} {one(b)}"
        case "color_attr", (color_a, a, color_b, b):
            include = [_object(a) | {"color": color_a}, _object(b) | {"color": color_b}]
            text = f"{one(f'{color_a} {a}')} and {one(f'{color_b} {b}')}"
        case _:
            raise ValueError(f"no content of {task}: {content}")
    return (
        {"tag": task, "include": include} | ({"exclude": exclude} if exclude else {}) | {"prompt": f"a photo of {text}"}
    )


def _object(name: str, count: int = 1) -> dict:
    return {"class": name, "count": count}


def requirement(prompt: dict) -> tuple:
    """What metadata require of an image; equal for every order of the objects and both wordings of a relation."""
    entries = prompt["include"]
    things = [(entry["class"], entry["count"], entry.get("color", "")) for entry in entries]
    relations = []
    for thing, entry in zip(things, entries, strict=True):
        if "position" in entry:
            relation, other = entry["position"]
            pair = (thing, things[other])
            relations.append((OPPOSITE.get(relation, relation), *(pair[::-1] if relation in OPPOSITE else pair)))
    limits = [(entry["class"], entry["count"]) for entry in prompt.get("exclude", [])]
    return tuple(sorted(things)), tuple(sorted(relations)), tuple(sorted(limits))


def plain(text: str) -> str:
    """A prompt in lower case, without punctuation at the ends and repeated spaces."""
    return " ".join(text.casefold().split()).strip(" .!,;:\"'")


def training_set(count: int, seed: int, benchmark: Iterable[dict]) -> list[dict]:
    """`count` prompts in training order; none has the requirement or the words of a prompt of `benchmark`.

    Random order means sorted by hashes of the content: the same on every machine and in every version.

    Raises UserError if `benchmark` excludes every prompt.
    """
    benchmark = list(benchmark)
    required, words = {requirement(prompt) for prompt in benchmark}, {plain(prompt["prompt"]) for prompt in benchmark}

    def free(task: str) -> Iterator[dict]:
        for content in sorted(contents(task), key=lambda content: derived_seed(seed, "geneval-train", task, *content)):
            prompt = metadata(task, content)
            if requirement(prompt) not in required and plain(prompt["prompt"]) not in words:
                yield prompt

    pools = {task: list(islice(free(task), count)) for task in TASKS}
    shares = {task: SHARES[task] for task in TASKS if pools[task]}
    if not shares:
        raise UserError("--exclude leaves no prompt at all")
    lines = []
    given, weights = 0, 0
    for task, share in shares.items():
        weights += share
        upto = round(count * weights / sum(shares.values()))
        lines += [(i // len(pools[task]), pools[task][i % len(pools[task])]) for i in range(upto - given)]
        given = upto
    lines.sort(key=lambda line: derived_seed(seed, "geneval-train order", line[0], line[1]["prompt"]))
    return [prompt for _, prompt in lines]


def held_out_set(count: int, seed: int, known: Iterable[dict]) -> list[dict]:
    """`count` prompts, the tasks in turn; none has the requirement or the words of a prompt of `known`, or another's.

    known  prompts; those without GenEval's metadata are told by their words alone

    Raises UserError if fewer than `count` prompts are left.
    """
    known = list(known)
    required = {requirement(prompt) for prompt in known if "include" in prompt}
    words = {plain(prompt["prompt"]) for prompt in known}

    def free(task: str) -> Iterator[dict]:
        of_task = list(contents(task))
        for place in torch.randperm(len(of_task), generator=derived_generator(seed, "held out", task)).tolist():
            prompt = metadata(task, of_task[place])
            if requirement(prompt) not in required and plain(prompt["prompt"]) not in words:
                required.add(requirement(prompt))
                yield prompt

    chosen, pools = [], {task: free(task) for task in TASKS}
    while pools and len(chosen) < count:
        for task, pool in list(pools.items()):
            prompt = next(pool, None)
            if prompt is None:
                del pools[task]
            else:
                chosen.append(prompt)
    if len(chosen) < count:
        raise UserError(f"only {len(chosen)} prompts are neither GenEval's nor trained on, fewer than {count} (eval)")
    return chosen[:count]


def read_benchmark(file: Path, setting: str) -> list[dict]:
    """GenEval's own prompts. Raises UserError if the file cannot be read; `setting` is what gave it."""
    if not file.exists():
        raise UserError(
            f"{file}: no such file; it lists GenEval's prompts, which are left out (run `make upstream`, or give "
            f"{setting} evaluation_metadata.jsonl of github.com/djghosh13/geneval)"
        )
    return [line.prompt for line in read_prompts(PromptSource(format="geneval", path=file))]


def write_training_set(count: int, seed: int, exclude: Path, out: Path) -> str:
    """Write the set as JSONL; returns a table of its contents.

    Raises UserError if `exclude` cannot be read, or `out` cannot be written.
    """
    benchmark = read_benchmark(exclude, "--exclude")
    prompts = training_set(count, seed, benchmark)
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}; --out)") from None
    rows = [f"{'':<14}{'lines':>8}{'distinct':>10}"]
    for task in TASKS:
        texts = [prompt["prompt"] for prompt in prompts if prompt["tag"] == task]
        rows.append(f"{task:<14}{len(texts):>8,}{len(set(texts)):>10,}")
    known = len({plain(prompt["prompt"]) for prompt in benchmark})
    return "\n".join([*rows, f"{out}: {len(prompts):,} lines, without the {known:,} prompts of {exclude}"])
