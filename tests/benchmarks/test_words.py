"""WordsEval: verdicts by RapidOCR, measures beside them, and what summary and report make of both."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from helpers.drawn_words import drawn
from helpers.fabricated import fabricate, settings_of
from htgrpo_ext.benchmarks import tesseract
from htgrpo_ext.benchmarks.base import Verdict
from htgrpo_ext.benchmarks.words import WordsEval
from htgrpo_ext.pixels import from_levels
from htgrpo_ext.report.comparison import write_comparison
from htgrpo_ext.report.page import write_report
from htgrpo_ext.report.summary import measure_lines, write_summary
from htgrpo_ext.words.world import split_prompts

EVAL = WordsEval(name="wordseval", prompts_per_task=2, images_per_prompt=2, seed=0)
CODES = torch.zeros(4, 96, dtype=torch.int64)
PROMPTS = [{"prompt": f'the word "{text}"', "text": text} for text in ("river", "river", "stone", "stone")]
LEVELS = torch.stack([drawn("river"), drawn("rivet"), drawn(), drawn("stone", ink="white", paper="black")])


def pixels() -> torch.Tensor:
    return from_levels(LEVELS)


def test_prompts_are_held_out_words_of_each_length():
    prompts = EVAL.prompts()
    assert [prompt["tag"] for prompt in prompts] == [task for task in EVAL.task_names for _ in range(2)]
    trained = {prompt["text"] for prompt in split_prompts(2)[0]}
    assert len({prompt["text"] for prompt in prompts} - trained) == len(prompts)
    assert len(EVAL.held_out(())) == 6


def test_the_verdict_is_an_exact_match_by_rapidocr():
    pytest.importorskip("rapidocr_onnxruntime", reason="RapidOCR is not there; make setup installs it")
    assert EVAL.judge(PROMPTS, CODES, pixels) == [
        Verdict(True, 1.0, ""),
        Verdict(False, 0.8, "reads `rivet`"),
        Verdict(False, 0.0, "reads nothing"),
        Verdict(True, 1.0, ""),
    ]


def test_measures_are_of_the_pictures_and_of_the_second_reader(monkeypatch):
    verdicts = [Verdict(True, 1.0, ""), Verdict(False, 0.8, ""), Verdict(False, 0.0, ""), Verdict(True, 1.0, "")]
    monkeypatch.setattr(tesseract, "read", lambda pictures: ["River", "riv er", "", "st"])
    found = EVAL.measure(PROMPTS, verdicts, pixels)
    assert found.keys() == EVAL.measures.keys()
    assert found["tesseract_exact"] == [1, 1, 0, 0] and found["tesseract_similarity"] == [1, 1, 0, 0.4]
    assert found["similarity"] == [1.0, 0.8, 0.0, 1.0]
    grey = LEVELS.double().mean(1) / 255
    assert found["brightness"] == pytest.approx(grey.mean((1, 2)).tolist())
    assert found["edges"][2] == 0 < found["edges"][0]
    apart = [(grey[i] - grey[i + 1]).abs().mean().item() for i in (0, 0, 2, 2)]
    assert found["diversity"] == pytest.approx(apart)


def test_what_cannot_be_measured_says_why(monkeypatch):
    monkeypatch.setenv("PATH", "")
    verdicts = [Verdict(True, 1.0, "")] * 2
    found = EVAL.measure(PROMPTS[1:3], verdicts, lambda: pixels()[1:3])
    assert found["tesseract_exact"] == found["tesseract_similarity"]
    assert found["tesseract_exact"] == "tesseract is not installed (apt-get install tesseract-ocr)"
    assert "has one picture" in found["diversity"] and len(found["brightness"]) == 2


def test_pictures_are_kept_as_they_are_shown():
    kept = EVAL.keep(CODES, pixels)
    assert kept.dtype == np.uint8 and torch.equal(torch.from_numpy(kept), LEVELS)
    assert [np.array(picture).tolist() for picture in EVAL.show(kept)] == LEVELS.permute(0, 2, 3, 1).tolist()


@pytest.fixture
def run(tmp_path):
    """A made-up run of WordsEval: measures of six prompts, of which the two of Tesseract are lacking once."""
    section = {"name": "wordseval", "prompts_per_task": 2, "images_per_prompt": 2, "seed": 0}
    settings = settings_of(tmp_path / "run", eval=None)
    fabricate(settings.folder, settings)
    settings = settings_of(tmp_path / "run", eval=section)
    config = (settings.folder / "config.yaml").read_text()
    (settings.folder / "config.yaml").write_text(config.replace("eval: null", f"eval: {json.dumps(section)}"))
    names = list(EVAL.measures)
    for which, shift in (("base", 0.0), ("trained", 0.25)):
        values = np.tile(np.arange(12).reshape(6, 2, 1) / 16 + shift, len(names))
        lacking = ["no such command" if which == "trained" and "tesseract" in name else "" for name in names]
        (settings.folder / "eval").mkdir(exist_ok=True)
        np.savez(
            settings.folder / f"eval/{which}.npz",
            kept=np.zeros((6, 2, 3, 4, 4), dtype=np.uint8),
            correct=np.ones((6, 2), dtype=bool),
            partial=np.ones((6, 2), dtype=np.float32),
            reasons=np.full((6, 2), ""),
            measures=values,
            measured=np.array(names),
            lacking=np.array(lacking),
        )
    (settings.folder / "eval/prompts.json").write_text(json.dumps(EVAL.prompts()))
    return settings


def test_summary_and_report_show_measures_and_what_is_lacking(run):
    summary = write_summary(run.folder, run, 0, {})
    found = summary["measures"]
    # the mean of three tasks of equal size is the mean of all: 0..11 sixteenths are 5.5 / 16
    assert found["brightness"]["base"]["score"] == pytest.approx(5.5 / 16)
    assert found["brightness"]["trained"]["score"] == pytest.approx(5.5 / 16 + 0.25)
    assert found["brightness"]["gain"]["score"] == pytest.approx(0.25)
    assert found["brightness"]["gain"]["interval"] == pytest.approx([0.25, 0.25])  # all prompts gain alike
    assert found["tesseract_exact"] == {"lacking": "no such command"}
    lines = measure_lines(summary, EVAL)
    assert "  brightness: 0.344 → 0.594" in lines and "  exact, Tesseract: no such command" in lines
    page = write_report(run.folder).read_text()
    assert "Beside the scores" in page and "no such command" in page and "+0.250" in page


def test_a_comparison_has_the_measures_of_base_and_methods(run, tmp_path):
    write_summary(run.folder, run, 0, {})
    result = write_comparison([run.folder], tmp_path / "compare", Console(width=200, file=io.StringIO()))
    base, trained = result["base"]["measures"], result["methods"]["htgrpo"]["measures"]
    assert base["edges"]["mean"] == pytest.approx(5.5 / 16)
    assert trained["edges"]["mean"] == pytest.approx(5.5 / 16 + 0.25)
    assert base["tesseract_exact"]["mean"] == pytest.approx(5.5 / 16)
    assert trained["tesseract_exact"] == {"lacking": "no such command"}
    text = (tmp_path / "compare/compare.md").read_text()
    assert "# Beside the scores" in text and "–: no such command." in text and "0.594 ±" in text


def test_a_benchmark_without_measures_has_none_in_its_summary(tmp_path):
    settings = settings_of(tmp_path / "run")
    fabricate(settings.folder, settings)
    assert "measures" not in write_summary(settings.folder, settings, 0, {})
    assert "Beside the scores" not in write_report(settings.folder).read_text()
