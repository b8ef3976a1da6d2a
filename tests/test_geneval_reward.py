"""GenEval as a reward: the verdict by hand and by another formulation, and a tiny detector in the real format."""

import ast
import json
import logging
import math

import numpy as np
import pytest
import torch
from authors import checkout
from hypothesis import given
from hypothesis import strategies as st

from htgrpo_ext.core.randomness import derived_generator, derived_seed
from htgrpo_ext.errors import UserError
from htgrpo_ext.prompts.geneval import metadata
from htgrpo_ext.rewards.geneval import CLASSES, COLORS, RELATIONS, Detection, check, judge, objects, relations
from htgrpo_ext.rewards.scorers import geneval as scorer_module
from htgrpo_ext.rewards.scorers.geneval import Detector, Scorer, bounds


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
    assert verdict(three, *[thing("cat")] * 4) == (False, 2 / 3)  # too many: excluded by the benchmark as well
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
    # The surest alone is asked for the benchmark; the partial reward wants one cat, so colour counts nothing.
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
    # A second dog: correct by the surest one, but the counts are not exact.
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
def test_a_relation_turned_round_is_its_opposite(a, b):
    def stands(a, b):
        (ax, ay), (bx, by) = (((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (a, b))
        wide, high = (a[2] - a[0] + b[2] - b[0]) / 10, (a[3] - a[1] + b[3] - b[1]) / 10
        half = math.dist((ax, ay), (bx, by)) / 2
        rule = {"left of": bx - ax - wide, "right of": ax - bx - wide, "above": by - ay - high, "below": ay - by - high}
        # Ties with half the distance go either way in floating point; none is judged here.
        return {name for name, excess in rule.items() if excess > half + 1e-6}, {
            name for name, excess in rule.items() if excess > max(half - 1e-6, 1e-3 - 1e-6)
        }

    surely, perhaps = stands(a, b)
    assert surely - relations(a, b) == set() or max(abs(v) for v in (a[0] - b[0], a[1] - b[1])) < 2e-3
    assert relations(a, b) <= perhaps
    opposite = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
    assert relations(b, a) == {opposite[name] for name in relations(a, b)}


def test_the_surest_sixteen_of_a_class_count():
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
        ({"include": [{"class": "cat", "count": 0}]}, "a count below 1"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, "a position to no earlier entry"),
    ],
)
def test_a_prompt_that_cannot_be_judged_is_one_line(change, says):
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
def test_the_verdict_is_the_benchmarks_own():
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


# --- the detector ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny random Mask2Former in the real format, loud enough to be sure of something."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("scipy")
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed("mask2former"))
        swin = transformers.SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=7,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )  # fmt: skip
        config = transformers.Mask2FormerConfig(
            backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
            dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=12,
            id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)},
        )  # fmt: skip
        model = transformers.Mask2FormerForUniversalSegmentation(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name == "class_predictor.weight" or "mask_embedder" in name:
                    weight.mul_(400 if "class" in name else 30)
    folder = tmp_path_factory.mktemp("mask2former")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def detector(checkpoint):
    found = Detector(torch.device("cpu"), str(checkpoint))
    found.short_side = 96
    return found


def picture(*size, seed=0):
    generator = derived_generator("picture", seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0].clamp(0, 255).to(torch.uint8)


def test_detections_are_those_of_transformers_own_post_processing(checkpoint, detector, monkeypatch):
    """At 384 x 384, the only size for which it is written."""
    from transformers import Mask2FormerImageProcessor

    monkeypatch.setattr(detector, "short_side", 384)
    image = picture(384, 384)
    processor = Mask2FormerImageProcessor(size={"height": 384, "width": 384})
    inputs = processor(images=[image.permute(1, 2, 0).numpy()], return_tensors="pt")
    with torch.no_grad():
        output = detector.model(pixel_values=inputs["pixel_values"])
    expected = processor.post_process_instance_segmentation(
        output, threshold=0.3, target_sizes=[(384, 384)], return_binary_maps=True
    )[0]
    (found,) = detector.detect([image])
    pairs = zip(expected["segments_info"], expected["segmentation"], strict=True)
    theirs = [(round(info["score"], 4), CLASSES[info["label_id"]], mask.bool()) for info, mask in pairs]
    ours = [(each.score, each.class_name, each.mask_HW) for each in found]
    theirs, ours = (sorted(each, key=lambda row: (row[1], int(row[2].sum()))) for each in (theirs, ours))
    assert len(ours) == len(theirs) >= 2
    for (score, name, mask), (their_score, their_name, their_mask) in zip(ours, theirs, strict=True):
        assert name == their_name and score == pytest.approx(their_score, abs=2e-4)
        assert (mask != their_mask).float().mean() < 1e-3


def test_images_of_any_size_in_any_company_give_their_own_detections(detector):
    images = [picture(64, 96, seed=1), picture(40, 40, seed=2), picture(64, 96, seed=3), picture(200, 90, seed=4)]
    together, alone = detector.detect(images), [detector.detect([image])[0] for image in images]
    assert any(together)
    for image, ours, own in zip(images, together, alone, strict=True):
        assert [each.class_name for each in ours] == [each.class_name for each in own]
        for each, other in zip(ours, own, strict=True):
            assert each.score == pytest.approx(other.score, abs=1e-4)
            assert each.mask_HW.shape == image.shape[1:] and (each.mask_HW != other.mask_HW).sum() < 3


def test_inputs_are_scaled_and_padded_as_mmdetection_does(detector, monkeypatch):
    monkeypatch.setattr(detector, "short_side", 800)
    for size, inner, padded in (((512, 512), (800, 800), (800, 800)), ((300, 900), (444, 1333), (448, 1344))):
        inputs, found = detector.inputs(torch.full((1, 3, *size), 124, dtype=torch.uint8))
        assert found == inner and tuple(inputs.shape[2:]) == padded
        assert inputs[0, :, inner[0] - 1, inner[1] - 1].tolist() == pytest.approx(
            [0.325 / 58.395, 7.72 / 57.12, 20.47 / 57.375], abs=1e-4
        )
        assert not inputs[..., inner[0] :, :].any() and not inputs[..., inner[1] :].any()


def test_a_box_is_as_wide_as_what_is_in_it():
    mask = torch.zeros(8, 9, dtype=torch.bool)
    mask[2:5, 3] = mask[4, 3:7] = True
    assert bounds(mask) == (3, 2, 7, 5)


def test_a_checkpoint_that_would_see_nothing_is_refused(checkpoint, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    def copy(name, weights=None, **changes):
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((checkpoint / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        save_file(
            weights or load_file(checkpoint / "model.safetensors"), folder / "model.safetensors", {"format": "pt"}
        )
        return str(folder)

    weights = load_file(checkpoint / "model.safetensors")
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="nowhere: no Mask2Former checkpoint"):
        Detector(cpu, str(tmp_path / "nowhere"))
    fewer = {name: value for name, value in weights.items() if not name.startswith("class_predictor")}
    with pytest.raises(UserError, match=r"2 weights missing: class_predictor"):
        Detector(cpu, copy("fewer", fewer))
    unnamed = {str(i): f"LABEL_{i}" for i in range(80)}
    with pytest.raises(UserError, match="its 80 classes are not COCO's"):
        Detector(cpu, copy("unnamed", id2label=unnamed))

    broken = copy("broken")
    move = torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: move(self, device).apply(zero))
    with pytest.raises(UserError, match="cpu computes something else than the CPU"):
        Detector(cpu, broken)


def zero(module):
    for weight in module.parameters(recurse=False):
        weight.data.zero_()


# --- both together ---------------------------------------------------------------------------------------------


class Painted:
    """In place of the detector: an object of class `cat` wherever the image is not black."""

    def __init__(self, device, checkpoint):
        pass

    def detect(self, images):
        return [self.see(image) for image in images]

    def see(self, image):
        if image[0, 0, 0] == 255:
            return None
        mask = image.any(0)
        return [Detection("cat", 0.95, bounds(mask), mask)] if mask.any() else []


class FakeClip:
    """CLIP by mean colour: a picture is near the text that names its colour."""

    hues = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}

    def __init__(self, *_):
        self.seen = []

    def pictures(self, pictures):
        self.seen += pictures
        means = torch.stack([torch.from_numpy(np.array(each)).float().mean((0, 1)) for each in pictures])
        return torch.nn.functional.normalize(means - means.mean(-1, keepdim=True), dim=-1)

    def texts(self, texts):
        hues = [next((h for name, h in self.hues.items() if f" {name}" in t), (-1.0, -1.0, -1.0)) for t in texts]
        return torch.nn.functional.normalize(torch.tensor(hues), dim=-1)


@pytest.fixture
def scorer(monkeypatch):
    monkeypatch.setattr(scorer_module, "OpenClip", FakeClip)
    monkeypatch.setattr(scorer_module, "Detector", Painted)
    found = Scorer(torch.device("cpu"))
    found.crops = found.colors.clip.seen
    return found


def square(color=None):
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    if color is not None:
        image[:, 5:11, 4:8] = 10
        image[color, 5:11, 4:8] = 200
    return image


def test_both_rewards_of_images_against_their_prompts(scorer):
    red, cat = metadata("colors", ("red", "cat")), metadata("single_object", ("cat",))
    broken = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    images = [square(0), square(2), square(), square(1), broken]
    scores = scorer.score([red, red, red, cat, cat], images)
    assert scores["geneval"][:4] == [1.0, 0.5, 0.0, 1.0] and scores["geneval-strict"][:4] == [1.0, 0.0, 0.0, 1.0]
    assert all(math.isnan(scores[name][4]) for name in Scorer.rewards)  # no score, rather than 0
    assert [crop.size for crop in scorer.crops] == [(4, 6), (4, 6)]  # asked only where a colour is
    with pytest.raises(ValueError, match="`a cat`: no GenEval metadata"):
        scorer.score([{"prompt": "a cat"}], [square(0)])


def test_what_surrounds_an_object_is_grey_where_its_colour_is_judged(scorer):
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    image[2] = 255  # blue all over but for an L of red
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[5:11, 4] = mask[10, 4:8] = True
    image[:, mask] = torch.tensor([[220], [0], [0]], dtype=torch.uint8)
    assert scorer.colors(image, "cat", [Detection("cat", 0.9, bounds(mask), mask)]) == ["red"]
    assert scorer.crops[0].getpixel((3, 0)) == (0x99, 0x99, 0x99) and scorer.crops[0].getpixel((0, 0)) == (220, 0, 0)


def test_a_detector_that_finds_nothing_is_said(scorer, caplog):
    prompts = [metadata("single_object", ("cat",))] * 50
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            scorer.score(prompts, [square()] * 50)
        assert not caplog.records
        scorer.score(prompts, [square()] * 50)
        scorer.score(prompts, [square(0)] * 50)
    assert [record.getMessage() for record in caplog.records] == ["geneval: no object in 200 of the last 200 images"]
