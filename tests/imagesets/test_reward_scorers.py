"""Reward models as scorers of a set: in this process and behind a server, with stubs in the models' place."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.drawn_words import drawn
from helpers.image_sets import made_set, written
from helpers.reward_stub import brightness, good, server
from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.scorers import SCORERS, scorer_named
from htgrpo_ext.imagesets.scorers.rewards import RewardModel
from htgrpo_ext.imagesets.scores import read_scores
from htgrpo_ext.imagesets.sets import check_set
from htgrpo_ext.pixels import decode_png, encode_png, levels_image
from htgrpo_ext.rewards.registry import REWARDS
from htgrpo_ext.rewards.scorers import deqa, scorer_class, unipercept
from htgrpo_ext.rewards.texts import wanted_text
from htgrpo_ext.workflow.score import score


@pytest.fixture
def folder(tmp_path):
    made_set(tmp_path / "set", "microeval", limit=1)
    return tmp_path / "set"


def scored(folder, name):
    """Items and lines."""
    _, items, record = check_set(folder)
    return items, read_scores(folder, name, items, record.images_per_prompt)


def means(folder):
    """Of each image in order its mean level."""
    suite, items, _ = check_set(folder)
    return [float(np.array(image).mean()) for item in items for image in suite.load(folder / "images", item)]


def brightness_here(seen):
    class Scorer:
        rewards = ("clip",)

        def __init__(self, device, gain: float = 1.0):
            self.gain = gain

        def score(self, prompts, images):
            seen.extend(prompt["prompt"] for prompt in prompts)
            return {"clip": [self.gain * level for level in brightness([encode_png(image) for image in images])]}

    return Scorer


def test_a_model_in_this_process_sees_every_image_with_its_prompt(folder, monkeypatch):
    seen = []
    monkeypatch.setattr("htgrpo_ext.rewards.scorers.scorer_class", lambda name: brightness_here(seen))
    scorer = scorer_named("clip", {"gain": 2.0, "device": "cpu", "batch_size": 10})
    score(folder, scorer, "clip")
    items, lines = scored(folder, "clip")
    assert [line.values["clip"] for line in lines] == pytest.approx([2 * mean for mean in means(folder)])
    assert seen == [item.prompt for item in items for _ in range(4)]
    (column,) = scorer.columns(items, lines, {}).columns
    assert column.total_Q.sum() / column.count_Q.sum() == pytest.approx(2 * np.mean(means(folder)))
    for options, words in [
        ({"gian": 1}, "scorer clip: unknown option"),
        ({"device": "tpu"}, "--set device tpu: no device"),
    ]:
        with pytest.raises(UserError, match=words.replace("scorer clip", "reward clip")):
            score(folder, scorer_named("clip", options), "clip", again=True)


def test_a_server_gives_the_same_lines(folder):
    with server(names=("clip",)) as (url, seen):
        score(folder, scorer_named("clip", {"url": url, "batch_size": 5}), "clip")
    items, lines = scored(folder, "clip")
    assert [line.values["clip"] for line in lines] == pytest.approx(means(folder))
    assert {request["reward"] for request in seen} == {"clip"} and max(len(r["images"]) for r in seen) == 5


def test_what_was_scored_before_a_server_failed_is_kept_for_another_server(folder):
    fails = lambda request, attempt: (400, b'{"detail": "out of paper"}') if attempt >= 10 else good(request, attempt)  # noqa: E731
    with server(fails, names=("clip",)) as (url, _), pytest.raises(UserError, match="status 400: out of paper"):
        score(folder, scorer_named("clip", {"url": url, "batch_size": 1}), "clip")
    assert not (folder / "scores/clip.jsonl").exists()
    with server(names=("clip",)) as (url, seen):
        score(folder, scorer_named("clip", {"url": url}), "clip")
    assert sum(len(request["images"]) for request in seen) == 24 - 8  # two items of four were scored
    assert [line.values["clip"] for line in scored(folder, "clip")[1]] == pytest.approx(means(folder))


@pytest.mark.parametrize("served", [True, False])
def test_unifiedreward_may_lack_a_score_here_and_there(tmp_path, monkeypatch, served):
    """Its reward server refuses a whole request when one answer has no score."""
    folder = tmp_path / "set"
    made_set(folder, "microeval", limit=3)
    suite, items, _ = check_set(folder)
    level = means(folder)
    without = np.array(suite.load(folder / "images", items[7])[2])

    def values(images):
        lacks = [np.array_equal(decode_png(image).permute(1, 2, 0), without) for image in images]
        return [float("nan") if lack else value for lack, value in zip(lacks, brightness(images), strict=True)]

    def answer(request, attempt):
        found = values(request["images"])
        return (400, b'{"detail": "nan"}') if np.isnan(found).any() else good(request, attempt)

    class Scorer:
        rewards = ("unifiedreward",)

        def __init__(self, device):
            pass

        def score(self, prompts, images):
            return {"unifiedreward": values([encode_png(image) for image in images])}

    monkeypatch.setattr("htgrpo_ext.rewards.scorers.scorer_class", lambda name: Scorer)
    with server(answer, names=("unifiedreward",)) as (url, _):
        scorer = scorer_named("unifiedreward", {"url": url} if served else {"device": "cpu"})
        score(folder, scorer, "unifiedreward")
        items, lines = scored(folder, "unifiedreward")
        assert [i for i, line in enumerate(lines) if not line.values] == [30]
        (column,) = scorer.columns(items, lines, {}).columns
        assert column.count_Q.sum() == 71
        assert column.total_Q.sum() == pytest.approx(sum(level) - level[30])
        monkeypatch.setattr(type(scorer), "may_lack", 0.01)
        with pytest.raises(UserError, match=r"scorer unifiedreward: no score for 1 of 72 images"):
            score(folder, scorer, "unifiedreward", again=True)


def test_a_server_that_is_not_there_or_serves_another_reward_is_refused_before_the_set_is_scored(folder):
    with server(names=("hpsv3",)) as (url, _):
        with pytest.raises(UserError, match=r"^reward clip: the server at .* has hpsv3$"):
            score(folder, scorer_named("clip", {"url": url}), "clip")
        with pytest.raises(UserError, match=r"^scorer hpsv3: `dtype` is an option of a model in this process"):
            score(folder, scorer_named("hpsv3", {"url": url, "dtype": "float32"}), "hpsv3")
    with pytest.raises(UserError, match=r"^reward clip: no server answers at"):
        score(folder, scorer_named("clip", {"url": url}), "clip")
    with pytest.raises(UserError, match=r"^scorer clip: option `url`: value error, must begin with http"):
        scorer_named("clip", {"url": "localhost:1"})


def test_ocr_reads_a_set_of_a_file_in_process_and_behind_a_server(tmp_path):
    """Two pictures of each prompt say it, the third lacks a letter of five, the fourth is blank."""
    pytest.importorskip("rapidocr_onnxruntime", reason="RapidOCR is not there; make setup installs it")
    lines = [{"tag": "a", "prompt": "a sign", "text": "River"}, {"prompt": 'a sign "stone"'}]
    prompts = written(tmp_path / "prompts.jsonl", [json.dumps(line) for line in lines])

    def paint(item):
        word = wanted_text(item.metadata).lower()
        return [levels_image(drawn(text)) for text in (word, word, word[:-1], "")]

    folder = tmp_path / "set"
    made_set(folder, "file", prompts, paint=paint, size=(96, 32))
    score(folder, scorer_named("ocr", {"detection": False, "device": "cpu"}), "ocr")
    items, found = scored(folder, "ocr")
    assert [line.values["ocr"] for line in found] == [1, 1, 0.8, 0] * 2
    assert [line.values["ocr-exact"] for line in found] == [1, 1, 0, 0] * 2
    columns = scorer_named("ocr").columns(items, found, {}).columns
    assert [column.total_Q.sum() / column.count_Q.sum() for column in columns] == [0.7, 0.5]

    with server(names=("ocr", "ocr-exact")) as (url, seen):  # it scores brightness; what matters is what it is told
        score(folder, scorer_named("ocr", {"url": url}), "ocr", again=True)
        asked = [prompt for request in seen for prompt in request["prompts"]]
    assert asked[0] == lines[0] and {"prompt": 'a sign "stone"'} in asked


def test_ocr_refuses_a_set_with_a_prompt_without_a_text_before_it_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("htgrpo_ext.rewards.ocr.Reader.__init__", lambda self, *_: None)
    prompts = written(tmp_path / "prompts.txt", ['a sign "OPEN"', "a wall"])
    made_set(tmp_path / "set", "file", prompts)
    with pytest.raises(UserError, match="^scorer ocr: 00001: prompt `a wall`: no text to read"):
        score(tmp_path / "set", scorer_named("ocr"), "ocr")
    assert not (tmp_path / "set/scores/ocr.jsonl").exists()


def test_every_reward_model_here_is_a_reward_with_its_metrics():
    for found in SCORERS:
        if issubclass(found, RewardModel):
            assert {REWARDS[metric].scorer for metric in found.metrics} == {found.name}
            assert found.metrics == tuple(found.titles) == tuple(scorer_class(found.metrics[0]).rewards)


def package(monkeypatch, name, **names):
    module = ModuleType(name)
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, name, module)


def test_unipercept_reads_files_and_an_image_that_it_cannot_score_has_none(monkeypatch):
    """The package's interface, as of 1.0.3: a list of paths in, a mapping or None for each out."""
    from PIL import Image

    made = []

    class Inferencer:
        def __init__(self, model_path, device, dtype):
            made.append((model_path, device, dtype))

        def reward(self, paths):
            levels = [np.array(Image.open(path)).mean() for path in paths]
            return [None if level == 7 else {"iaa": level, "iqa": level + 1, "ista": level + 2} for level in levels]

    package(monkeypatch, "unipercept_reward", UniPerceptRewardInferencer=Inferencer)
    scorer = unipercept.Scorer(torch.device("cpu"), dtype="float32")
    assert made == [(None, "cpu", torch.float32)]
    images = [torch.full((3, 4, 4), level, dtype=torch.uint8) for level in (3, 7, 9)]
    found = scorer.score([{"prompt": "a"}] * 3, images)
    assert found["iaa"] == pytest.approx([3, float("nan"), 9], nan_ok=True) and found["ista"][2] == 11


def test_deqa_asks_the_code_that_its_checkpoint_brings(monkeypatch):
    """The model's interface, as its authors' README shows it: a list of pictures in, a tensor of scores out."""
    asked = []

    class Model:
        def to(self, device):
            return self

        def score(self, pictures):
            return torch.tensor([float(np.array(picture).mean()) for picture in pictures], dtype=torch.float16)

    def from_pretrained(name, **options):
        asked.append((name, options["trust_remote_code"], options["torch_dtype"], options["revision"]))
        return Model()

    import transformers

    monkeypatch.setattr(transformers, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=from_pretrained))
    scorer = deqa.Scorer(torch.device("cpu"), revision="abc")
    assert asked == [("zhiyuanyou/DeQA-Score-Mix3", True, torch.float16, "abc")]
    assert scorer.score([{}], [torch.full((3, 4, 4), 3, dtype=torch.uint8)]) == {"deqa": [3.0]}
    with pytest.raises(UserError, match="unknown dtype `int8`"):
        deqa.Scorer(torch.device("cpu"), dtype="int8")
