"""GenEval by its own script: what we make of its file; and, where its code is at hand, our sums against its own.

A stand-in takes the script's place, because that needs a GPU and weights.
"""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from helpers.authors import checkout
from helpers.image_sets import geneval_lines, made_set, picture, scored, written
from helpers.standins import standin
from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.scorers import scorer_named
from htgrpo_ext.imagesets.scores import read_about
from htgrpo_ext.workflow.score import score


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set of three prompts of each task; never written to."""
    folder = tmp_path_factory.mktemp("geneval")
    made_set(folder / "set", "geneval", written(folder / "prompts.jsonl", geneval_lines()), limit=3)
    return folder / "set"


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "set")


@pytest.fixture
def scorer(tmp_path):
    return scorer_named("geneval", standin(tmp_path / "checkout", "geneval"))


def test_verdicts_are_brought_into_the_order_of_the_set(folder, scorer):
    score(folder, scorer, "geneval")
    theirs = {}
    for text in (folder / "scores/geneval/run/own/results.jsonl").read_text().splitlines():
        line = json.loads(text)
        *_, item, _, name = line["filename"].split("/")
        theirs[item, int(name.removesuffix(".png"))] = (float(line["correct"]), line["reason"])
    items, lines, _ = scored(folder, "geneval")
    assert len(lines) == len(theirs) == 72
    assert {(v.item, v.image): (v.values["correct"], v.reason) for v in lines} == theirs
    about = read_about(folder, "geneval") or {}
    assert (
        about["lines"] == 72 and about["commit"] is None and about["versions"] == {"torch": about["versions"]["torch"]}
    )
    assert [each["picture"] for each in about["calibration"]] == ["grey", "black", "white"]
    columns = scorer.columns(items, lines, about)
    assert [c.title for c in columns.columns] == ["Single Obj.", "Two Obj.", "Counting", "Colors", "Position", "Attr."]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("kernel", r"its kernels do not run on this machine: RuntimeError: CUDA error: no kernel image is available"),
        ("exit", r"evaluate_images.py ended with exit code 1: ModuleNotFoundError: No module named 'mmcv' \(.*log"),
        ("nothing", r"evaluate_images.py ended without an error and wrote nothing \(.*log.txt\)"),
        ("missing", r"results.jsonl: no verdict on 1 images; the first is image \d of 00000"),
        ("twice", r"results.jsonl:73: a second verdict on image \d of 00455"),
        ("other prompt", r"results.jsonl:1: a verdict on another prompt than that of 00455"),
        ("other image", r"results.jsonl:1: a verdict on /elsewhere/00000/samples/00000.png, which is not in this set"),
        ("torn", r"results.jsonl:72: no verdict \(JSONDecodeError\('Expecting"),
        ("yes", r"its calibration pictures come out wrong: grey, `a photo of a dog`: correct is 1, not 0; black, "),
    ],
)  # fmt: skip
def test_a_scorer_that_fails_in_silence_is_refused_and_nothing_is_overwritten(
    folder, scorer, monkeypatch, spoil, words
):
    (folder / "scores").mkdir()
    for name in ("geneval.jsonl", "geneval.json"):
        (folder / "scores" / name).write_text("from before")
    monkeypatch.setenv("STANDIN", spoil)
    with pytest.raises(UserError, match=words):
        score(folder, scorer, "geneval", again=True)
    assert {path.read_text() for path in (folder / "scores").glob("geneval.json*")} == {"from before"}


def test_pictures_of_the_users_must_come_out_as_they_say(folder, scorer, tmp_path, made):
    known = tmp_path / "known"
    known.mkdir()
    item, _, path = made / "images/00000", None, made / "images/00000/samples"
    metadata = json.loads((item / "metadata.jsonl").read_text())
    shutil.copy(sorted(path.iterdir())[0], known / "cat.png")
    line = {"file": "cat.png", "prompt": metadata["prompt"], "metadata": metadata}
    outcomes = []
    for expected in (0, 1):
        written(known / "calibration.jsonl", [json.dumps(line | {"expect": {"correct": expected}})])
        try:
            score(folder, scorer, "geneval", again=True, calibration=known)
            outcomes.append("")
        except UserError as error:
            outcomes.append(str(error))
    assert outcomes.count("") == 1
    assert re.search(
        r"come out wrong: cat.png, `a photo of a single_object cat 0`: correct is \d, not \d", max(outcomes)
    )
    written(known / "calibration.jsonl", [json.dumps(line | {"expect": {"correct": [0, 1]}})])
    score(folder, scorer, "geneval", again=True, calibration=known)
    assert (read_about(folder, "geneval") or {})["calibration"][-1]["picture"] == "cat.png"
    for text, words in [("{", "calibration.jsonl:1: not {"), ("", "no calibration picture")]:
        (known / "calibration.jsonl").write_text(text)
        with pytest.raises(UserError, match=words):
            score(folder, scorer, "geneval", again=True, calibration=known)
    written(known / "calibration.jsonl", [json.dumps(line | {"file": "dog.png", "expect": {"correct": 1}})])
    with pytest.raises(UserError, match=r"calibration.jsonl:1: no picture dog.png"):
        score(folder, scorer, "geneval", again=True, calibration=known)


def test_a_detector_that_finds_nothing_is_refused(folder, scorer, tmp_path, monkeypatch):
    """As on a GPU for which its kernels were not compiled; every blank picture is right then, but not the dog."""
    picture("dog", (64, 64)).save(tmp_path / "dog.jpg")
    sees = scorer.model_copy(update={"models": tmp_path})
    monkeypatch.setenv("STANDIN", "blind")
    with pytest.raises(UserError, match=r"come out wrong: dog.jpg, `a photo of a dog`: correct is 0, not 1 \("):
        score(folder, sees, "geneval")
    monkeypatch.setenv("STANDIN", "sees")
    score(folder, sees, "geneval")
    assert [each["picture"] for each in (read_about(folder, "geneval") or {})["calibration"]][-1] == "dog.jpg"


def test_another_checkout_or_a_changed_one_is_refused(folder, tmp_path):
    options = standin(tmp_path / "checkout", "geneval") | {"commit": "af4902f"}

    def git(*arguments):
        subprocess.run(
            ["git", "-C", tmp_path / "checkout", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True
        )

    with pytest.raises(
        UserError, match=r"checkout is at no commit, not at af4902f \(launch/eval/geneval.sh --setup-only"
    ):
        score(folder, scorer_named("geneval", options), "geneval")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "a")
    with pytest.raises(UserError, match=r"is at [0-9a-f]{40}, not at af4902f"):
        score(folder, scorer_named("geneval", options), "geneval")
    head = subprocess.run(["git", "-C", tmp_path / "checkout", "rev-parse", "HEAD"], capture_output=True, text=True)
    options["commit"] = head.stdout.strip()
    with pytest.raises(
        UserError, match=r"scorer geneval: no calibration picture nowhere/dog.jpg \(launch/eval/geneval"
    ):
        score(folder, scorer_named("geneval", options | {"models": "nowhere"}), "geneval")
    (tmp_path / "checkout/evaluation/evaluate_images.py").write_text("print('no')")
    with pytest.raises(UserError, match=r"checkout is changed, not at"):
        score(folder, scorer_named("geneval", options), "geneval")
    with pytest.raises(
        UserError, match=r"nowhere has no evaluation/evaluate_images.py \(launch/eval/geneval.sh --setup"
    ):
        score(folder, scorer_named("geneval", options | {"checkout": "nowhere"}), "geneval")
    with pytest.raises(UserError, match=r"no Python at nowhere \(launch/eval/geneval.sh --setup-only\)"):
        score(folder, scorer_named("geneval", options | {"python": "nowhere"}), "geneval")
    assert not (folder / "scores/geneval.json").exists()


@pytest.mark.upstream
def test_our_sums_are_those_of_the_benchmarks_own_summary(tmp_path):
    """Full size: 553 prompts, 2,212 verdicts."""
    theirs = checkout("GENEVAL_CHECKOUT", "evaluation/summary_scores.py") / "evaluation/summary_scores.py"
    folder, scorer = tmp_path / "set", scorer_named("geneval", standin(tmp_path / "checkout", "geneval"))
    made_set(folder, "geneval", written(tmp_path / "prompts.jsonl", geneval_lines()))
    score(folder, scorer, "geneval")
    done = subprocess.run(
        [sys.executable, theirs, folder / "scores/geneval/run/own/results.jsonl"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    items, lines, _ = scored(folder, "geneval")
    columns = scorer.columns(items, lines, {}).columns
    assert "Total images: 2212" in done and len(lines) == 2212
    for column in columns:
        correct, images = int(column.total_Q.sum()), int(column.count_Q.sum())
        assert re.search(rf"^{column.name} += {correct / images:.2%} \({correct} / {images}\)$", done, re.MULTILINE)
    overall = np.mean([column.total_Q.sum() / column.count_Q.sum() for column in columns])
    assert f"Overall score (avg. over tasks): {overall:.5f}" in done
