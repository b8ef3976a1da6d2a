"""Evaluation of a model by a benchmark, here one that judges pixels and is none of ours."""

import json
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from helpers.micro_runs import tiny_checkpoint, tiny_settings
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.benchmarks.base import Benchmark, Verdict
from htgrpo_ext.evaluation import evaluate
from htgrpo_ext.report.folder import read_scored

TEXTS = [f"a {color} star in the snow" for color in ("red", "blue", "green")] * 15  # more than one batch holds


class Bright(Benchmark):
    """Images are correct when they are bright; their mean colour is kept."""

    name: Literal["bright"] = "bright"
    title = "Brightness"
    task_names = {"all": "all"}

    def prompts(self):
        return [{"prompt": text, "tag": "all"} for text in TEXTS]

    def judge(self, prompts, codes_BN, pixels):
        assert len(prompts) == len(codes_BN) == len(pixels())
        lights = pixels().mean((1, 2, 3)).tolist()
        return [Verdict(light > 0, light, prompt["prompt"]) for prompt, light in zip(prompts, lights, strict=True)]

    def keep(self, codes_BN, pixels):
        return pixels().mean((2, 3)).numpy()

    def show(self, kept):
        return [Image.new("RGB", (4, 4), tuple((127.5 * (one + 1)).astype(int))) for one in kept]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(folder, backbone, arrays of the evaluation, images done after each batch, images decoded at each call)."""
    folder = tmp_path_factory.mktemp("run")
    settings = tiny_settings("htgrpo", tiny_checkpoint(folder / "checkpoint"), folder)
    backbone, done, decoded = load_backbone(settings.model, "cpu"), [], []
    decode = backbone.decode
    backbone.decode = lambda codes_BN: decoded.append(len(codes_BN)) or decode(codes_BN)
    bright = Bright(images_per_prompt=2, seed=5)
    assert evaluate(bright, backbone, settings.rollout, 16, folder, "base", done.append) > 0
    with np.load(folder / "eval/base.npz") as arrays:
        return folder, backbone, dict(arrays), done, decoded


def test_what_the_benchmark_keeps_and_says_is_saved_by_prompt_and_image(evaluated):
    folder, _, arrays, done, _ = evaluated
    assert {name: array.shape for name, array in arrays.items()} == {
        "kept": (45, 2, 3),
        "correct": (45, 2),
        "partial": (45, 2),
        "reasons": (45, 2),
    }
    assert arrays["partial"] == pytest.approx(arrays["kept"].mean(-1), abs=1e-5)
    assert (arrays["correct"] == (arrays["partial"] > 0)).all()
    assert arrays["reasons"].tolist() == [[text] * 2 for text in TEXTS]
    assert json.loads((folder / "eval/prompts.json").read_text())[44] == {"prompt": TEXTS[44], "tag": "all"}
    assert sum(done) == 90 and [path.name for path in (folder / "eval").iterdir() if "partial" in path.name] == []


def test_a_batch_is_decoded_once(evaluated):
    *_, done, decoded = evaluated
    assert decoded == done


def test_noise_depends_on_the_benchmarks_seed_and_the_prompts_place_only(evaluated):
    folder, backbone, arrays, *_ = evaluated
    settings = tiny_settings("d1", folder / "checkpoint", folder, "seed=9")
    for name, seed in (("again", 5), ("other", 6)):
        bright = Bright(images_per_prompt=2, seed=seed)
        evaluate(bright, backbone, settings.rollout, 128, folder, name, lambda _: None)
        with np.load(folder / f"eval/{name}.npz") as other:
            assert np.array_equal(other["kept"], arrays["kept"]) == (name == "again")


class Measured(Bright):
    """The second measure cannot be had for the second batch."""

    measures = {"red": "mean of the red channel", "none": "nothing"}

    def measure(self, prompts, verdicts, pixels):
        assert [verdict.reason for verdict in verdicts] == [prompt["prompt"] for prompt in prompts]
        reds = pixels()[:, 0].mean((1, 2)).tolist()
        return {"red": reds, "none": [0.0] * len(prompts) if len(prompts) == 64 else "no second batch"}


def test_measures_are_saved_by_prompt_and_image_with_the_reason_for_what_is_lacking(evaluated):
    folder, backbone, arrays, *_ = evaluated
    settings = tiny_settings("htgrpo", folder / "checkpoint", folder)
    benchmark = Measured(images_per_prompt=2, seed=5)
    evaluate(benchmark, backbone, settings.rollout, 16, folder, "measured", lambda _: None)
    scored = read_scored(folder, "measured")
    assert np.array_equal(scored.kept_QI, arrays["kept"])
    assert scored.measures["red"] == pytest.approx(arrays["kept"][..., 0], abs=1e-6)
    assert scored.measures["none"] == "no second batch"
    assert read_scored(folder, "base").measures == {}
