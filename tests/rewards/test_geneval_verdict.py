"""GenEval's verdict against examples by hand, another formulation, and the benchmark's own function."""

import ast
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.authors import checkout
from htgrpo_ext.core.randomness import derived_seed
from htgrpo_ext.prompts.geneval import metadata
from htgrpo_ext.rewards.geneval import COLORS, RELATIONS, Detection, check, judge, objects, relations


def thing(name, score=0.95, x=0.0, y=0.0, size=10.0):
    return Detection(name, score, (x, y, x + size, y + size))


def verdict(prompt, *detections, colors=None):
    """(correct, partial) where colour is `colors`[score]."""
    given_colors = lambda name, things: [colors[t.score] for t in things]  # noqa: E731
    judged = judge(prompt, objects(detections, prompt["tag"]), given_colors)
    return judged.correct, pytest.approx(judged.partial)


def test_counts_by_hand():
    three = metadata("counting", (3, "cat"))
    assert verdict(three, *[thing("cat")] * 3) == (True, 1)
    assert verdict(three, *[thing("cat")] * 2) == (False, 2 / 3)
    assert verdict(three, *[thing("cat")] * 4) == (False, 2 / 3)  # the benchmark excludes too many, too
    assert verdict(three, *[thing("cat")] * 7) == (False, 0)  # never below
    assert verdict(three, *[thing("cat")] * 3, thing("cat", 0.9), thing("dog")) == (True, 1)  # 0.9 does not count
    one = metadata("single_object", ("cat",))
    assert verdict(one, thing("cat", 0.31)) == (True, 1) and verdict(one, thing("cat", 0.3)) == (False, 0)
    assert verdict(one, thing("cat"), thing("cat")) == (True, 0)  # at least one is correct, but two are not one
    both = metadata("two_object", ("cat", "dog"))
    assert verdict(both, thing("cat")) == (False, 0.5) and verdict(both) == (False, 0)
    assert verdict(both, thing("cat"), thing("dog"), thing("bus")) == (True, 1)


def test_colors_by_hand():
    red = metadata("colors", ("red", "cat"))
    assert verdict(red, thing("cat", 0.8), colors={0.8: "red"}) == (True, 1)
    assert verdict(red, thing("cat", 0.8), colors={0.8: "blue"}) == (False, 0.5)
    # The benchmark reads the best cat's colour. For partial credit two cats are not one, so colour is worth 0.
    two = (thing("cat", 0.8), thing("cat", 0.7))
    assert verdict(red, *two, colors={0.8: "red", 0.7: "blue"}) == (True, 0)
    assert verdict(red, *two, colors={0.8: "blue", 0.7: "red"}) == (False, 0)
    both = metadata("color_attr", ("red", "cat", "blue", "dog"))
    seen = (thing("cat", 0.8), thing("dog", 0.7))
    assert verdict(both, *seen, colors={0.8: "red", 0.7: "blue"}) == (True, 1)
    assert verdict(both, *seen, colors={0.8: "blue", 0.7: "red"}) == (False, 0.5)
    assert verdict(both, seen[0], colors={0.8: "red"}) == (False, 0.5)


def test_positions_by_hand():
    left = metadata("position", ("cat", "left of", "dog"))
    assert verdict(left, thing("cat", x=0), thing("dog", x=50)) == (True, 1)
    assert verdict(left, thing("cat", x=50), thing("dog", x=0)) == (False, 2 / 3)
    assert verdict(left, thing("cat", y=50), thing("dog", y=0)) == (False, 2 / 3)
    assert verdict(left, thing("cat", x=0)) == (False, 1 / 3)
    # A second dog: correct by the best one, but the counts are not exact.
    assert verdict(left, thing("cat"), thing("dog", x=50), thing("dog", 0.5, x=-90)) == (True, 1 / 3)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((-30, 0), {"left of"}),
        ((30, 0), {"right of"}),
        ((0, -30), {"above"}),
        ((0, 30), {"below"}),
        ((-30, 30), {"left of", "below"}),  # (30 - 2) / 42.4 = 0.66 on both axes
        ((-30, 15), {"left of"}),  # (15 - 2) / 33.5 = 0.39
        ((-2, 0), set()),  # a tenth of 10 + 10
        ((-3, 0), set()),  # 1 / 3
        ((-5, 0), {"left of"}),  # 3 / 5
    ],
)
def test_relations_of_two_boxes_ten_pixels_wide(offset, expected):
    x, y = offset
    assert relations((100 + x, 100 + y, 110 + x, 110 + y), (100, 100, 110, 110)) == expected


numbers = st.integers(0, 60).map(float)
boxes = st.tuples(numbers, numbers, numbers, numbers).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(boxes, boxes)
def test_swapping_two_boxes_gives_the_opposite_relations(a, b):
    def stands(a, b):
        (ax, ay), (bx, by) = (((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (a, b))
        wide, high = (a[2] - a[0] + b[2] - b[0]) / 10, (a[3] - a[1] + b[3] - b[1]) / 10
        half = math.dist((ax, ay), (bx, by)) / 2
        rule = {"left of": bx - ax - wide, "right of": ax - bx - wide, "above": by - ay - high, "below": ay - by - high}
        # Floating point decides ties with half the distance either way, so no tie is judged here.
        return {name for name, excess in rule.items() if excess > half + 1e-6}, {
            name for name, excess in rule.items() if excess > max(half - 1e-6, 1e-3 - 1e-6)
        }

    surely, perhaps = stands(a, b)
    assert surely - relations(a, b) == set() or max(abs(v) for v in (a[0] - b[0], a[1] - b[1])) < 2e-3
    assert relations(a, b) <= perhaps
    opposite = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
    assert relations(b, a) == {opposite[name] for name in relations(a, b)}


def test_at_most_sixteen_objects_of_a_class_count():
    found = objects([thing("cat", 0.3 + i / 100) for i in range(1, 30)], "single_object")
    assert [round(t.score, 2) for t in found["cat"]] == [round(0.59 - i / 100, 2) for i in range(16)]
    assert objects([thing("cat", 0.8)], "counting") == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"include": None}, "no GenEval metadata"),
        ({"tag": None}, "no GenEval metadata"),
        ({"include": []}, "no GenEval metadata"),
        ({"include": [{"count": 1}]}, "an entry that is no GenEval metadata"),
        ({"include": ["cat"]}, "an entry that is no GenEval metadata"),
        ({"include": [{"class": "unicorn", "count": 1}]}, "not a class, colour or relation"),
        ({"include": [{"class": "cat", "count": 1, "color": "mauve"}]}, "not a class, colour or relation"),
        ({"include": [{"class": "cat", "count": 0}]}, "a count that is not 1 to 16"),
        ({"include": [{"class": "cat", "count": -2}]}, "a count that is not 1 to 16"),
        ({"include": [{"class": "cat", "count": True}]}, "a count that is not 1 to 16"),
        ({"include": [{"class": "cat", "count": 17}]}, "a count that is not 1 to 16"),
        ({"include": [{"class": ["cat"], "count": 1}]}, "not a class, colour or relation"),
        ({"exclude": [{"class": "cat\x1b", "count": 1}]}, "not a class, colour or relation"),
        ({"include": [{"class": "cat", "count": 1, "position": 5}]}, "an entry that is no GenEval metadata"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, "a position to no earlier entry"),
    ],
)
def test_metadata_that_cannot_be_judged_are_refused_in_one_line(change, says):
    good = metadata("position", ("cat", "above", "dog")) | {"exclude": [{"class": "bus", "count": 1}]}
    check(good)
    with pytest.raises(ValueError, match=says):
        check(good | change)


# --- the benchmark's own function ------------------------------------------------------------------------------


def authors_rule(colors):
    """GenEval's `evaluate`, cut out of its script, which cannot be imported without MMDetection and a GPU."""
    folder = checkout("GENEVAL_CHECKOUT", "evaluation/evaluate_images.py")
    tree = ast.parse((folder / "evaluation/evaluate_images.py").read_text())
    wanted = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in ("evaluate", "relative_position")]
    names = {"np": np, "COLORS": list(COLORS), "POSITION_THRESHOLD": 0.1, "color_classification": colors}
    exec(compile(ast.Module(wanted, []), "evaluate_images.py", "exec"), names)
    return names["evaluate"]


@pytest.mark.upstream
def test_the_verdict_equals_that_of_the_benchmarks_script():
    paint = lambda boxes: [COLORS[int(box[0] + box[1]) % 3] for box in boxes]  # noqa: E731
    theirs = authors_rule(lambda image, things, name: paint([box for box, _ in things]))
    generator = np.random.default_rng(derived_seed("geneval verdicts"))
    names = ["cat", "dog"]
    contents = {
        "single_object": [("cat",)],
        "two_object": [("cat", "dog")],
        "counting": [(n, "cat") for n in (2, 3, 4)],
        "colors": [(color, "cat") for color in COLORS[:3]],
        "position": [("cat", relation, "dog") for relation in RELATIONS],
        "color_attr": [(a, "cat", b, "dog") for a in COLORS[:3] for b in COLORS[:3]],
    }
    agreed = {True: 0, False: 0}
    for task, each in contents.items():
        for number in range(3000):
            prompt = metadata(task, each[number % len(each)])
            detections = []
            for _ in range(generator.integers(0, 6)):
                x, y, w, h = map(float, generator.integers(0, 40, 4).tolist())
                score = 1 - 0.12 * generator.random() if task == "counting" else generator.random()
                detections.append(Detection(str(generator.choice(names)), float(score), (x, y, x + w, y + h)))
            found = objects(detections, task)
            boxed = {name: [(np.array([*t.box, t.score]), None) for t in things] for name, things in found.items()}
            correct = judge(prompt, found, lambda _, things: paint([t.box for t in things])).correct
            assert correct == theirs(None, boxed, prompt)[0], (prompt, detections)
            agreed[correct] += 1
    assert min(agreed.values()) > 2000
