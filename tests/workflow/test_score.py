"""`htgrpo eval score`: what is written, what is refused, what a kill leaves; by the micro scorer and a user's."""

import os
import shutil
import signal
import subprocess
import sys
from random import Random

import numpy as np
import pytest
import torch

from helpers.command import run
from helpers.image_sets import made_set, picture
from helpers.paths import HELPERS, PYTHONPATH
from htgrpo_ext.benchmarks.aggregate import aggregate
from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.pngs import save_png
from htgrpo_ext.imagesets.scorers import scorer_named
from htgrpo_ext.imagesets.scores import ScoreLine, images_digest, read_about, read_scores, refuse_changed_images
from htgrpo_ext.imagesets.sets import check_set
from htgrpo_ext.micro.decoder import decode_codes
from htgrpo_ext.micro.verifier import verify
from htgrpo_ext.micro.world import draw_scene
from htgrpo_ext.pixels import to_image
from htgrpo_ext.workflow.score import score

SUMS = f"{HELPERS / 'file_scorer.py'}:Sums"
IMAGES = 12 * 4


def codes_of(item) -> list[list[int]]:
    return [draw_scene(item.metadata, Random(f"{item.key} {i}"), noise=0.4) for i in range(4)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A set of two prompts of each of MicroEval's tasks, drawn with faults; never written to."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    paint = lambda item: [to_image(pixels) for pixels in decode_codes(torch.tensor(codes_of(item)))]  # noqa: E731
    made_set(folder, "microeval", limit=2, paint=paint, size=(128, 128))
    return folder


@pytest.fixture
def folder(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "set")


def scored(folder, name="sums"):
    _, items, record = check_set(folder)
    return read_scores(folder, name, items, record.images_per_prompt)


def test_micro_gives_the_verifiers_verdict_on_the_codes_that_were_drawn(folder, monkeypatch, capsys):
    assert run(monkeypatch, "eval", "score", str(folder), "--scorer", "micro") == 0
    assert capsys.readouterr().out == f"{folder}/scores/micro.jsonl\n"
    _, items, _ = check_set(folder)
    verdicts = [verify(item.metadata, codes) for item in items for codes in codes_of(item)]
    expected = [({"correct": float(v.correct), "partial": v.partial}, v.reason) for v in verdicts]
    assert [(line.values, line.reason) for line in scored(folder, "micro")] == expected
    assert 0 < sum(v.correct for v in verdicts) < IMAGES


def test_micros_columns_are_the_tasks_and_their_mean_the_benchmarks_overall(folder):
    scorer = scorer_named("micro")
    score(folder, scorer, "micro")
    _, items, _ = check_set(folder)
    lines = scored(folder, "micro")
    columns = scorer.columns(items, lines, read_about(folder, "micro") or {})
    expected = aggregate([i.metadata for i in items], np.array([v.values["correct"] for v in lines]).reshape(12, 4), 0)
    found = {column.name: column.total_Q.sum() / column.count_Q.sum() for column in columns.columns}
    assert found == pytest.approx({task: each["score"] for task, each in expected["tasks"].items()})
    assert columns.overall == "mean" and np.mean(list(found.values())) == pytest.approx(expected["overall"]["score"])
    assert columns.strata_Q.tolist() == [item.tag for item in items]


def test_a_picture_of_another_world_is_refused_by_name(folder):
    _, _, record = check_set(folder)
    path = folder / "images/00040/samples/00001.png"
    save_png(path, picture("noise", (128, 128)), record.stamp, "00040/samples/00001.png")
    with pytest.raises(UserError, match=r"images: image 1 of 00040: no picture of the micro world"):
        score(folder, scorer_named("micro"), "micro")
    assert not (folder / "scores/micro.jsonl").exists()


def test_a_set_is_scored_once_unless_its_images_change_or_it_is_asked_to(folder, tmp_path, monkeypatch, capsys):
    command = ["eval", "score", str(folder), "--scorer", SUMS, "--set", f"notes={tmp_path / 'notes'}"]
    assert run(monkeypatch, *command) == run(monkeypatch, *command) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("sums.jsonl: these images were scored already (--again)")
    assert len((tmp_path / "notes").read_text().splitlines()) == IMAGES
    assert run(monkeypatch, *command, "--again") == 0
    assert len((tmp_path / "notes").read_text().splitlines()) == 2 * IMAGES
    suite, items, record = check_set(folder)
    shutil.rmtree(folder / "images/00040")
    suite.save(folder / "images", items[2], [picture(i, (128, 128)) for i in range(4)], record.stamp)
    with pytest.raises(UserError, match=r"set/images: the images changed since sums scored them; score the set again"):
        refuse_changed_images(folder, "sums", read_about(folder, "sums") or {}, images_digest(folder, suite, items))
    before = scored(folder)
    assert run(monkeypatch, *command) == 0
    assert [a.item for a, b in zip(before, scored(folder), strict=True) if a != b] == ["00040"] * 4


def attempt(folder, **options) -> int:
    """The exit code of `htgrpo eval score` by the user's scorer, in a process of its own."""
    command = [sys.executable, "-m", "htgrpo_ext.cli", "eval", "score", str(folder), "--scorer", SUMS]
    command += [part for option in options.items() for part in ("--set", "{}={}".format(*option))]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": PYTHONPATH}, capture_output=True).returncode


def test_a_kill_loses_no_line_and_scores_none_twice(folder, tmp_path):
    """Killed in the middle of the third item, with a torn line; then killed at once; then finished."""
    notes, partial = tmp_path / "notes", folder / "scores/sums/partial.jsonl"
    undisturbed = shutil.copytree(folder, tmp_path / "undisturbed")
    score(undisturbed, scorer_named(SUMS), SUMS)
    assert attempt(folder, notes=notes, kill_at=10) == -signal.SIGKILL
    assert len(partial.read_text().splitlines()) == 1 + 10
    with partial.open("a") as file:
        file.write('{"item": "0004')
    assert attempt(folder, notes=notes, kill_at=0) == -signal.SIGKILL
    assert len(partial.read_text().splitlines()) == 1 + 8  # an item that is not whole is scored again
    assert attempt(folder, notes=notes) == 0
    assert (folder / "scores/sums.jsonl").read_bytes() == (undisturbed / "scores/sums.jsonl").read_bytes()
    wanted = [f"{line.item} {line.image}" for line in scored(folder)]
    assert notes.read_text().splitlines() == wanted[:10] + wanted[8:]
    assert not partial.exists()


def test_lines_of_other_options_or_other_images_are_not_continued(folder, tmp_path):
    fresh = shutil.copytree(folder, tmp_path / "fresh")
    score(fresh, scorer_named(SUMS), SUMS)
    assert attempt(folder, offset=5, kill_at=20) == -signal.SIGKILL
    score(folder, scorer_named(SUMS), SUMS)
    assert scored(folder) == scored(fresh)

    suite, items, record = check_set(fresh)
    assert attempt(folder, offset=5, kill_at=20) == 0  # these images were scored already
    shutil.rmtree(folder / "scores")
    assert attempt(folder, kill_at=20) == -signal.SIGKILL
    for place in (folder, fresh):
        shutil.rmtree(place / "images/00000")
        suite.save(place / "images", items[0], [picture(i, (128, 128)) for i in range(4)], record.stamp)
        score(place, scorer_named(SUMS), SUMS)
    assert scored(folder) == scored(fresh)


class Scripted(scorer_named(SUMS).__class__):
    """Says what a test gives it."""

    def score(self, pictures, work):
        yield from self.says(pictures)


def wanted(pictures):
    return [ScoreLine(item.key, i, {"sum": 1.0}) for item in pictures.items for i in range(4)]


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (lambda p: [], "0 lines for 48 images"),
        (lambda p: wanted(p)[:-1], "47 lines for 48 images"),
        (lambda p: wanted(p)[:2] + wanted(p)[1:], "a line of image 1 of 00000, not of image 2 of 00000"),
        (lambda p: wanted(p)[1:], "a line of image 1 of 00000, not of image 0 of 00000"),
        (lambda p: [*wanted(p), wanted(p)[-1]], "a line of image 3 of 00201, not of the end"),
        (lambda p: [ScoreLine("00000", 0, {"sum": float("nan")})], "image 0 of 00000 got no finite `sum`"),
        (lambda p: [ScoreLine("00000", 0, {})], "image 0 of 00000 got no finite `sum`"),
        (
            lambda p: [ScoreLine("00000", 0, {"sum": 1, "more": 1})],
            "image 0 of 00000 got a metric that it does not have",
        ),
    ],
)
def test_lines_that_are_not_one_per_image_are_refused_and_nothing_is_overwritten(folder, monkeypatch, says, words):
    score(folder, scorer_named(SUMS), SUMS)
    before = [(folder / "scores" / name).read_bytes() for name in ("sums.jsonl", "sums.json")]
    monkeypatch.setattr(Scripted, "says", staticmethod(says), raising=False)
    with pytest.raises(UserError, match=f"^scorer sums: {words}"):
        score(folder, Scripted(), SUMS, again=True)
    assert before == [(folder / "scores" / name).read_bytes() for name in ("sums.jsonl", "sums.json")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scorer", "deka"], "unknown scorer `deka` (one of geneval, dpg, deqa, imagereward,"),
        (["--scorer", "geneval"], "set of MicroEval, but geneval scores geneval"),
        (["--scorer", "micro", "--set", "a=1"], "scorer micro: unknown option `a` (one of none)"),
        (["--scorer", SUMS, "--set", "kill_at=x"], "scorer sums: option `kill_at`: input should be a valid integer"),
        (["--scorer", "nowhere.py:Sums"], "nowhere.py: no such file"),
        (["--scorer", f"{HELPERS}/paths.py:ROOT"], "paths.py:ROOT: no class of that name that is a Scorer"),
        (["--scorer", "micro", "--calibration", "nowhere"], "nowhere/calibration.jsonl: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(drawn, monkeypatch, capsys, arguments, words):
    assert run(monkeypatch, "eval", "score", str(drawn), *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not (drawn / "scores").exists()


def test_an_incomplete_set_is_refused(folder):
    (folder / "images/00040/samples/00001.png").unlink()
    with pytest.raises(UserError, match=r"00001.png: missing"):
        score(folder, scorer_named(SUMS), SUMS)
    assert not (folder / "scores").exists()
