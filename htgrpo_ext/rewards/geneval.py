"""GenEval's verdict on the objects found in an image (github.com/djghosh13/geneval), and partial credit for training.

    found = objects(detections, prompt["tag"])      by class, highest score first
    verdict = judge(prompt, found, colors)

This file has no model: a detector finds the objects, and a classifier names their colours. Boxes are (left, top, right,
bottom) in pixels, y downwards.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from htgrpo_ext.errors import one_line

# The detector's 80 classes in COCO's order, named as in GenEval's prompts.
CLASSES = tuple(
    """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush
    """.replace("\n    ", " ")
    .strip()
    .split(", ")
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # an object counts above this score; in task `counting` above the second
MAX_OBJECTS = 16  # of one class
POSITION_THRESHOLD = 0.1  # an offset must exceed this share of both objects' sizes

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detection:
    class_name: str
    score: float
    box: Box
    mask_HW: Tensor | None = None  # bool, the whole image


@dataclass(frozen=True)
class Verdict:
    correct: bool  # by the benchmark's rule: at least the count of each entry, fewer than the excluded count
    partial: float  # mean over the requirements, in [0, 1]; 1 only with exact counts


def objects(detections: Iterable[Detection], tag: str) -> dict[str, list[Detection]]:
    """The detections that count in a task, by class, highest score first."""
    least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    found = defaultdict(list)
    for detection in sorted(detections, key=lambda detection: -detection.score):
        if detection.score > least and len(found[detection.class_name]) < MAX_OBJECTS:
            found[detection.class_name].append(detection)
    return {name: things for name, things in found.items() if things}


def relations(a: Box, b: Box) -> set[str]:
    """Where object a is relative to object b: at most two of RELATIONS, none if they overlap too much.

    On each axis the offset of the centres, less a tenth of both sizes, must exceed half the distance of the centres.
    """
    offsets = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(a[i + 2] - a[i]) + abs(b[i + 2] - b[i]) for i in (0, 1)]
    beyond = [max(abs(offset) - POSITION_THRESHOLD * size, 0.0) for offset, size in zip(offsets, sizes, strict=True)]
    if max(beyond) < 1e-3:  # pixels
        return set()
    distance = math.hypot(*offsets)
    names = (("left of", "right of"), ("above", "below"))
    return {names[i][offsets[i] > 0] for i in (0, 1) if beyond[i] / distance > 0.5}


def judge(
    prompt: dict, found: dict[str, list[Detection]], colors: Callable[[str, Sequence[Detection]], list[str]]
) -> Verdict:
    """The verdict on one image.

    prompt  GenEval's metadata, see `check`
    found   the result of `objects`
    colors  names the colour of each of some objects of a class; called at most once per entry, only where it matters

    `partial` is the mean over requirements. Of each entry: its count, worth max(0, 1 - |wanted - found| / wanted); its
    colour, worth the share of the wanted number that has it; its position, worth 0 or 1. Colour and position are worth
    0 unless the count is exact. github.com/yifan123/reward-server (`evaluate_reward`) has this rule with three
    differences: a count can be worth less than 0, a wrong position adds a 0 and a 1 to the mean, and a wrong colour
    leaves the position out of it.
    """
    shares: list[float] = []
    groups: list[list[Detection] | None] = []  # of each entry its objects, None if a requirement fails
    exact: list[bool] = []
    for entry in prompt["include"]:
        name, count = entry["class"], entry["count"]
        things = found.get(name, [])
        best = things[:count]
        exact.append(len(things) == count)
        matched = len(best) == count
        shares.append(max(0.0, 1 - abs(count - len(things)) / count))
        if "color" in entry:
            right = colors(name, best).count(entry["color"]) if matched else 0
            shares.append(right / count if exact[-1] else 0.0)
            matched = right == count
        if "position" in entry:
            relation, other = entry["position"]
            target = groups[other]
            matched = matched and target is not None
            matched = matched and all(relation in relations(a.box, b.box) for a in best for b in target or [])
            shares.append(float(matched and exact[-1] and exact[other]))
        groups.append(best if matched else None)
    surplus = any(len(found.get(entry["class"], [])) >= entry["count"] for entry in prompt.get("exclude", []))
    return Verdict(None not in groups and not surplus, sum(shares) / len(shares))


def check(prompt: dict, classes: Sequence[str] = CLASSES, colors: Sequence[str] = COLORS) -> None:
    """Raise ValueError, one line, unless a prompt has GenEval metadata that can be judged and met."""
    text = one_line(prompt.get("prompt"), 60)
    include, exclude = prompt.get("include"), prompt.get("exclude", [])
    lists = isinstance(include, list) and isinstance(exclude, list)
    if not (lists and include and isinstance(prompt.get("tag"), str)):
        raise ValueError(f"prompt `{text}`: no GenEval metadata (tag, include)")
    for i, entry in enumerate([*include, *exclude]):
        try:
            name, count, color = entry["class"], entry["count"], entry.get("color", colors[0])
            relation, other = entry.get("position", (RELATIONS[0], 0))
        except (TypeError, KeyError, ValueError, AttributeError):
            raise ValueError(f"prompt `{text}`: an entry that is no GenEval metadata: {one_line(entry, 80)}") from None
        if name not in classes or color not in colors or relation not in RELATIONS:
            raise ValueError(f"prompt `{text}`: not a class, colour or relation of GenEval: {one_line(entry, 80)}")
        if type(count) is not int or not 1 <= count <= MAX_OBJECTS + (i >= len(include)):
            raise ValueError(f"prompt `{text}`: a count that is not 1 to {MAX_OBJECTS}: {one_line(entry, 80)}")
        if type(other) is not int or "position" in entry and not 0 <= other < i < len(include):
            raise ValueError(f"prompt `{text}`: a position to no earlier entry: {one_line(entry, 80)}")
