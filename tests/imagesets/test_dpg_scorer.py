"""DPG-Bench by its own script: what we make of its files; and, where its code is at hand, our sums against its own.

A stand-in takes the script's place, because that needs weights. The questions are made up.
"""

import csv
import re
import shutil

import pytest

from helpers.authors import checkout
from helpers.image_sets import dpg_lines, made_set, scored, written
from helpers.standins import HERE, standin, write_questions
from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.base import Item
from htgrpo_ext.imagesets.scorers import scorer_named
from htgrpo_ext.imagesets.scorers.dpg_questions import read_questions, tile_score
from htgrpo_ext.imagesets.scorers.dpg_questions import write_questions as write_ours
from htgrpo_ext.imagesets.scores import ScoreLine
from htgrpo_ext.workflow.score import score

ITEMS = [f"coco{i}" for i in range(1065)]
CATEGORIES = ["global", "entity", "attribute", "relation", "other", "overall"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set of the first ten prompts; never written to."""
    folder = tmp_path_factory.mktemp("dpg")
    made_set(folder / "set", "dpg", written(folder / "prompts.jsonl", dpg_lines()), limit=10)
    return folder / "set"


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "set")


@pytest.fixture
def scorer(tmp_path):
    csv = write_questions(tmp_path / "questions.csv", ITEMS)
    return scorer_named("dpg", standin(tmp_path / "checkout", "dpg") | {"csv": str(csv)})


def shown(columns) -> dict:
    """The columns as in a table; None where nothing counts."""
    pairs = [(c, float(c.count_Q.sum())) for c in columns.columns]
    return {c.name: c.scale * float(c.total_Q.sum()) / count if count else None for c, count in pairs}


def test_a_question_counts_as_no_if_its_parent_does():
    parents = {1: [0], 2: [1], 3: [2], 4: [0], 5: [1, 4]}
    assert tile_score({1: True, 2: True, 3: True, 4: True, 5: True}, parents) == 1
    assert tile_score({1: False, 2: True, 3: True, 4: True, 5: True}, parents) == 1 / 5  # 2, 3 and 5 fall with 1
    assert tile_score({1: True, 2: False, 3: True, 4: True, 5: True}, parents) == 3 / 5  # 3 falls with 2
    assert tile_score({1: True, 2: True, 3: True, 4: False, 5: True}, parents) == 3 / 5
    with pytest.raises(KeyError):
        tile_score({2: True}, {2: [1]})


def test_both_counts_by_hand():
    """Two items with four tiles each; the script loses the first item."""
    about = {
        "first_question": ["coco0", 1],
        "questions": {
            "coco0": {"1": ["entity - whole", [0]], "2": ["attribute - color", [1]]},
            "coco1": {"1": ["entity - whole", [0]], "2": ["relation - spatial", [1]]},
        },
    }
    answers = {"coco0": [(1, 1), (1, 0), (0, 1), (0, 0)], "coco1": [(1, 1), (1, 1), (0, 1), (1, 0)]}
    items = [Item(key, key, {}) for key in answers]
    lines = [
        ScoreLine(key, i, {"dpg": 0.0}, "", {"1": bool(a), "2": bool(b)})
        for key, tiles in answers.items()
        for i, (a, b) in enumerate(tiles)
    ]
    dpg = scorer_named("dpg")
    repaired = shown(dpg.columns(items, lines, about))
    # coco0: (1 + .5 + 0 + 0) / 4, coco1: (1 + 1 + 0 + .5) / 4. Categories pool raw answers of all tiles.
    assert repaired["overall"] == pytest.approx(100 * (0.375 + 0.625) / 2)
    assert (repaired["entity"], repaired["attribute"], repaired["relation"]) == (62.5, 50.0, 75.0)
    official = shown(dpg.columns_official(items, lines, about))
    assert official["overall"] == pytest.approx(62.5)
    assert (official["entity"], official["attribute"], official["relation"]) == (100.0, None, 0.0)  # the last tile's


def test_the_item_that_the_script_drops_is_asked_again(folder, scorer):
    score(folder, scorer, "dpg")
    log = (folder / "scores/dpg/run/own/script/log.txt").read_text()
    assert log == "Failed filename: coco0.png 1\n"
    items, lines, about = scored(folder, "dpg")
    assert about["first_question"] == ["coco0", 1] and len(lines) == 40
    questions, _ = read_questions(scorer.questions)
    for line in lines:
        assert list(line.answers) == [str(number) for number in questions[line.item]]
        parents = {str(n): [str(p) if p else 0 for p in q.parents] for n, q in questions[line.item].items()}
        assert line.values["dpg"] == tile_score(line.answers, parents)
    assert scorer.columns(items, lines, about).columns[-1].count_Q.sum() == 10
    official = scorer.columns_official(items, lines, about)
    assert official.columns[-1].count_Q.tolist() == [0] + [1] * 9
    result = (folder / "scores/dpg/run/own/script/result.txt").read_text()
    assert f"DPG-Bench score: {shown(official)['overall']:.8f}"[:25] in result
    assert about["calibration"][0] == {"picture": "grey", "prompt": "Is there a dog?", "values": {"dpg": 0.0}}


def test_a_set_without_the_first_item_is_asked_once(tmp_path):
    folder = tmp_path / "set"
    lines = [*dpg_lines()[1:], dpg_lines()[0]]
    made_set(folder, "dpg", written(tmp_path / "prompts.jsonl", lines), limit=3)
    csv = write_questions(tmp_path / "questions.csv", ITEMS)
    scorer = scorer_named("dpg", standin(tmp_path / "checkout", "dpg") | {"csv": str(csv)})
    score(folder, scorer, "dpg")
    items, lines, about = scored(folder, "dpg")
    overall = [f(items, lines, about).columns[-1].total_Q.tolist() for f in (scorer.columns, scorer.columns_official)]
    assert overall[0] == overall[1] and not (folder / "scores/dpg/run/own/script-repaired").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("failed", r"result.txt: the script failed at coco7.png: CUDA went away"),
        ("detail", r"the scores of coco\d.png are not those of its answers"),
        ("empty", r"compute_dpg_bench.py ended without an error and wrote nothing"),
    ],
)
def test_replies_that_do_not_fit_are_refused(folder, scorer, monkeypatch, spoil, words):
    monkeypatch.setenv("STANDIN", spoil)
    with pytest.raises(UserError, match=words):
        score(folder, scorer, "dpg")
    assert not (folder / "scores/dpg.jsonl").exists()


def test_questions_that_are_not_the_benchmarks_are_refused(folder, scorer, tmp_path):
    path = scorer.questions
    whole = path.read_text()
    for text, words in [
        ("", "questions.csv: no question in it"),
        ("a,b\n1,2\n", r"questions.csv:2: no question of DPG-Bench \(KeyError"),
        (whole.replace(",1,0,", ",one,0,", 1), r"questions.csv:2: no question of DPG-Bench \(ValueError"),
        (whole.replace("coco3,", "coco,"), "questions.csv: no question about coco3"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            score(folder, scorer, "dpg")
    path.unlink()
    with pytest.raises(UserError, match="questions.csv: DPG-Bench's questions cannot be read"):
        score(folder, scorer, "dpg")
    assert not (folder / "scores/dpg.jsonl").exists()


def test_our_file_of_questions_is_read_back_without_its_first_row(tmp_path):
    questions, _ = read_questions(write_questions(tmp_path / "a.csv", ITEMS[:5]))
    write_ours(tmp_path / "b.csv", questions)
    again, first = read_questions(tmp_path / "b.csv")
    assert first == ("skipped", 1) and {key: each for key, each in again.items() if key != "skipped"} == questions
    with (tmp_path / "b.csv").open() as file:
        assert next(csv.DictReader(file))["dependency"] == "0,0"  # else pandas reads a column of numbers


@pytest.mark.upstream
def test_our_sums_are_those_of_the_benchmarks_own_script(tmp_path, monkeypatch):
    """Full size: the authors' script, with answers by the pixels in place of mPLUG, on 1,065 grids."""
    theirs = checkout("DPG_CHECKOUT", "dpg_bench/compute_dpg_bench.py") / "dpg_bench/compute_dpg_bench.py"
    pytest.importorskip("pandas", reason="the authors' script reads its questions by pandas")
    monkeypatch.setenv("DPG_SCRIPT", str(theirs))
    folder = tmp_path / "set"
    made_set(folder, "dpg", written(tmp_path / "prompts.jsonl", dpg_lines()))
    options = standin(tmp_path / "checkout", "dpg", HERE / "authors_dpg_bench.py")
    scorer = scorer_named("dpg", options | {"csv": str(write_questions(tmp_path / "questions.csv", ITEMS))})
    score(folder, scorer, "dpg")
    items, lines, about = scored(folder, "dpg")
    assert len(lines) == 4260
    script = folder / "scores/dpg/run/own/script"
    assert re.findall("Failed filename: .*", (script / "log.txt").read_text()) == ["Failed filename: coco0.png 1"]
    result = (script / "result.txt").read_text()
    official = scorer.columns_official(items, lines, about)
    ours, counts = shown(official), {c.name: c.count_Q.sum() for c in official.columns}
    assert len(re.findall(r"\.png, ", result)) == counts["overall"] == 1064
    theirs = dict(re.findall(r"^\t([^\t:]+): (\S+)$", result.partition("L2")[0], re.MULTILINE))
    theirs["overall"] = re.findall("DPG-Bench score: (.*)", result)[0]
    assert list(ours) == CATEGORIES
    assert ours == pytest.approx({name: float(value) for name, value in theirs.items()}, abs=1e-9)
    repaired = shown(scorer.columns(items, lines, about))
    again = (folder / "scores/dpg/run/own/script-repaired/result.txt").read_text()
    dropped = float(re.findall("DPG-Bench score: (.*)", again)[0])
    assert repaired["overall"] == pytest.approx((1064 * ours["overall"] + dropped) / 1065, abs=1e-9)
