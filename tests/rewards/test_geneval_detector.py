"""GenEval's detector on a tiny checkpoint in the real format, and its scorer."""

import json
import logging
import math

import numpy as np
import pytest
import torch

from htgrpo_ext.core.randomness import derived_generator, derived_seed
from htgrpo_ext.errors import UserError
from htgrpo_ext.prompts.geneval import metadata
from htgrpo_ext.rewards.geneval import CLASSES, Detection
from htgrpo_ext.rewards.scorers import geneval as scorer_module
from htgrpo_ext.rewards.scorers.geneval import Detector, Scorer, bounds


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny random Mask2Former in the real format, with weights large enough for high scores."""
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


def test_detections_equal_those_of_transformers_post_processing(checkpoint, detector, monkeypatch):
    """At 384 x 384, the only size that it assumes."""
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


def test_detections_do_not_depend_on_the_other_images_of_a_batch(detector):
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


def test_a_box_encloses_its_mask():
    mask = torch.zeros(8, 9, dtype=torch.bool)
    mask[2:5, 3] = mask[4, 3:7] = True
    assert bounds(mask) == (3, 2, 7, 5)


def test_an_unsuitable_detector_checkpoint_is_refused(checkpoint, tmp_path, monkeypatch):
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
    """Replaces the detector: whatever is not black is an object of class `cat`."""

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
    """Replaces CLIP: a picture is near the text that names its mean colour."""

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


def test_partial_and_strict_rewards_by_hand(scorer):
    red, cat = metadata("colors", ("red", "cat")), metadata("single_object", ("cat",))
    broken = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    images = [square(0), square(2), square(), square(1), broken]
    scores = scorer.score([red, red, red, cat, cat], images)
    assert scores["geneval"][:4] == [1.0, 0.5, 0.0, 1.0] and scores["geneval-strict"][:4] == [1.0, 0.0, 0.0, 1.0]
    assert all(math.isnan(scores[name][4]) for name in Scorer.rewards)  # no score, rather than 0
    assert [crop.size for crop in scorer.crops] == [(4, 6), (4, 6)]  # called only for a prompt with a colour
    with pytest.raises(ValueError, match="`a cat`: no GenEval metadata"):
        scorer.score([{"prompt": "a cat"}], [square(0)])


def test_colours_are_classified_on_a_grey_background(scorer):
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    image[2] = 255  # blue all over but for an L of red
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[5:11, 4] = mask[10, 4:8] = True
    image[:, mask] = torch.tensor([[220], [0], [0]], dtype=torch.uint8)
    assert scorer.colors(image, "cat", [Detection("cat", 0.9, bounds(mask), mask)]) == ["red"]
    assert scorer.crops[0].getpixel((3, 0)) == (0x99, 0x99, 0x99) and scorer.crops[0].getpixel((0, 0)) == (220, 0, 0)


def test_a_detector_that_finds_nothing_is_logged(scorer, caplog):
    prompts = [metadata("single_object", ("cat",))] * 50
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            scorer.score(prompts, [square()] * 50)
        assert not caplog.records
        scorer.score(prompts, [square()] * 50)
        scorer.score(prompts, [square(0)] * 50)
    assert [record.getMessage() for record in caplog.records] == ["geneval: no object in 200 of the last 200 images"]
