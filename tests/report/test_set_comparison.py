"""Scored sets side by side: their numbers, the files, and what is refused."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from helpers.command import run
from helpers.compared_sets import SAMPLER, micro_items, write_lines, write_set, write_verdicts
from helpers.paths import ROOT
from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.base import Item
from htgrpo_ext.imagesets.record import read_record, write_record
from htgrpo_ext.report.set_comparison import write_set_comparison
from htgrpo_ext.report.sets import read_sets

ITEMS = micro_items(3, tasks=2)  # three prompts of each of two tasks
WRONG = {"base": 0.8, "ours": 0.2}
FILES = ["summary.csv", "summary.html", "summary.json", "summary.md", "summary.tex"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of a base and of two runs of a method, by name; and the verdicts on their images."""
    folders, verdicts = {}, {}
    root = tmp_path_factory.mktemp("sets")
    for name, label in (("base", "base"), ("ours-0", "ours"), ("ours-1", "ours")):
        folder, judged = write_set(root / name, ITEMS, WRONG[label], f"sha256:{name}", draws=name, label=label)
        write_verdicts(folder, ITEMS, judged)
        write_lines(folder, ITEMS, "hpsv3", lambda n, name=name: ({"hpsv3": 8 + n / 10 + len(name)}, ""))
        write_lines(folder, ITEMS, "deqa", lambda n: ({"deqa": n % 4}, ""))
        folders[name], verdicts[name] = folder, np.array([v.correct for v in judged], dtype=float).reshape(2, 3 * 4)
    return folders, verdicts


@pytest.fixture
def sets(made, tmp_path):
    """Copies of the folders, to spoil."""
    shutil.copytree(next(iter(made[0].values())).parent, tmp_path / "sets")
    return {name: tmp_path / "sets" / name for name in made[0]}


@pytest.fixture(scope="module")
def compared(made, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("out"), io.StringIO()
    result = write_set_comparison(read_sets(list(made[0].values())), "base", out, Console(file=said, width=80))
    return out, result, said.getvalue()


def row(table: dict, label: str) -> dict:
    return next(row for row in table["rows"] if row["label"] == label)


def test_a_benchmarks_scores_are_means_of_its_tasks_and_runs(made, compared):
    verdicts, (table, _) = made[1], compared[1]["tables"]
    assert table["title"] == "GenEval" and list(table["columns"]) == ["single_object", "two_object", "overall"]
    ours = np.stack([verdicts["ours-0"], verdicts["ours-1"]])
    found = row(table, "ours")["scores"]
    assert found["single_object"]["score"] == pytest.approx(ours[:, 0].mean())
    assert found["overall"]["score"] == pytest.approx(ours.mean())
    difference = row(table, "ours")["differences"]["overall"]
    assert difference["score"] == pytest.approx(ours.mean() - verdicts["base"].mean())
    assert difference["beyond_noise"] == (difference["low"] > 0) and difference["images_needed"] % 4 == 0
    assert row(table, "base")["differences"] == {}


def test_preference_metrics_are_one_table_in_the_papers_order(compared):
    _, table = compared[1]["tables"]
    assert table["columns"] == {"deqa": "DeQA", "hpsv3": "HPSv3"}
    assert row(table, "base")["scores"]["deqa"]["score"] == 1.5
    assert row(table, "base")["scores"]["hpsv3"]["score"] == pytest.approx(8 + 23 / 20 + 4)
    difference = row(table, "ours")["differences"]["hpsv3"]
    assert difference["score"] == pytest.approx(2) and difference["beyond_noise"]  # the same for every image
    assert difference["images_needed"] == 4
    assert row(table, "ours")["differences"]["deqa"]["images_needed"] is None  # no difference


def test_the_papers_rows_are_of_the_same_model_and_called_the_papers(compared):
    scores, preference = (table["paper"] for table in compared[1]["tables"])
    assert [line["label"] for line in scores][-1] == "paper: + HT-GRPO"
    assert scores[-1]["scores"]["overall"] == 0.83 and preference[-1]["scores"]["hpsv3"] == 10.46
    assert all("paper" in line["label"] for line in scores + preference)


def test_every_file_has_the_same_numbers(compared):
    out, result, said = compared
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert json.loads((out / "summary.json").read_text()) == result
    score = row(result["tables"][0], "ours")["scores"]["overall"]
    words = f"{score['score']:.2f} [{score['low']:.2f}, {score['high']:.2f}]".replace("0.", ".")
    for text in (said, *((out / f"summary.{kind}").read_text() for kind in ("md", "tex", "html"))):
        assert words in text
    lines = list(csv.DictReader(io.StringIO((out / "summary.csv").read_text())))
    (line,) = [x for x in lines if x["row"] == "ours" and x["column"] == "overall"]
    assert float(line["score"]) == score["score"] and line["runs"] == "2" and line["baseline"] == "base"
    (line,) = [x for x in lines if x["source"] == "paper" and x["row"] == "mmada htgrpo" and x["column"] == "overall"]
    assert line["score"] == "0.83"


def test_latex_tables_are_whole(compared):
    text = (compared[0] / "summary.tex").read_text()
    for block in re.findall(r"\\begin{tabular}{(l?r*)}(.*?)\\end{tabular}", text, re.DOTALL):
        rows = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert {line.count(" & ") for line in rows} == {len(block[0]) - 1} and rows
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 6
    assert not re.search(r"(?<!\\)[%&_#](?!.*needs)", re.sub(r"^%.*$| & ", "", text, flags=re.MULTILINE))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_printed_tables_fit_the_terminal(made, tmp_path, width):
    said = io.StringIO()
    write_set_comparison(read_sets(list(made[0].values())), None, tmp_path, Console(file=said, width=width))
    page = str(tmp_path / "summary.html")
    assert all(len(line) <= width for line in said.getvalue().splitlines() if page not in line)
    assert "…" not in said.getvalue()


def test_differences_are_from_the_first_row_or_the_one_that_is_named(made, tmp_path):
    benches = read_sets([made[0][name] for name in ("ours-0", "base")])
    quiet = Console(file=io.StringIO())
    by_default, named = (write_set_comparison(benches, label, tmp_path, quiet) for label in (None, "base"))
    assert [table["baseline"] for table in by_default["tables"]] == ["ours", "ours"]
    gains = [
        by_default["tables"][0]["rows"][1]["differences"]["overall"]["score"],
        named["tables"][0]["rows"][0]["differences"]["overall"]["score"],
    ]
    assert gains[0] == -gains[1] != 0


def test_a_folder_stands_for_the_sets_in_it(made):
    (bench,) = read_sets([made[0]["base"].parent]).values()
    assert [one.folder.name for one in bench] == ["base", "ours-0", "ours-1"]


def test_benchmarks_have_tables_of_their_own(made, sets, tmp_path):
    items = micro_items(2, tasks=1)
    folder, judged = write_set(
        tmp_path / "micro", items, 0.5, "sha256:m", "microeval", model={"name": "micro"}, label="m"
    )
    write_lines(
        folder, items, "micro", lambda n: ({"correct": float(judged[n].correct), "partial": 0.5}, "none"), "microeval"
    )
    result = write_set_comparison(
        read_sets([*sets.values(), folder]), None, tmp_path / "out", Console(file=io.StringIO())
    )
    assert [table["title"] for table in result["tables"]][::2] == ["GenEval", "MicroEval"]
    assert "another evaluation" in result["tables"][-1]["note"]


def test_dpg_bench_is_reported_repaired_and_as_its_script_counts(tmp_path):
    """Two prompts with two questions each; the script skips the first prompt's first, to which its second refers."""
    items = [Item(key, f"prompt {key}", {"item_id": key}, json.dumps({"item_id": key})) for key in ("a", "b")]
    folder, _ = write_set(
        tmp_path / "dpg", items, 0.5, "sha256:d", "dpg", paint=lambda: Image.new("RGB", (8, 8)), size=(8, 8)
    )
    questions = {key: {"1": ["entity - whole", [0]], "2": ["global", [1]]} for key in ("a", "b")}
    answers = {"1": True, "2": False}  # each image scores 1/2
    write_lines(
        folder, items, "dpg", lambda n: ({"dpg": 0.5}, "", answers if n < 6 else {"1": True, "2": True}), "dpg",
        questions=questions, first_question=["a", 1],
    )  # fmt: skip
    benches = read_sets([folder])
    repaired, script = write_set_comparison(benches, None, tmp_path / "out", Console(file=io.StringIO()))["tables"]
    assert (repaired["title"], script["title"]) == ("DPG-Bench", "DPG-Bench as its script counts")
    assert list(repaired["columns"].values())[-1] == "Overall" and "entity" in repaired["columns"]
    (row,), (by_script,) = repaired["rows"], script["rows"]
    assert row["scores"]["overall"]["score"] == pytest.approx(100 * (0.5 + 0.75) / 2)
    assert by_script["scores"]["overall"]["score"] == pytest.approx(75)  # of `b` alone
    assert row["scores"]["global"]["score"] == pytest.approx(25)
    assert [line["scores"]["overall"] for line in repaired["paper"]] == [70.51, 75.81, 74.37, 81.09]


# --- refused ---------------------------------------------------------------------------------------------------


def made_anew(folder: Path, items=ITEMS, **fields) -> None:
    """The same set, of another record or other prompts; whole and scored."""
    label = read_record(folder).label
    shutil.rmtree(folder)
    _, judged = write_set(folder, items, WRONG[label], **{"weights": "sha256:x", "label": label} | fields)
    write_verdicts(folder, items, judged)


def spoil_sampler(sets):
    made_anew(sets["ours-1"], sampler=SAMPLER | {"steps": 64})
    return "mixed runs: .*ours-1 has another sampler.steps \\(64, not 12\\) than .*base"


def spoil_seed(sets):
    made_anew(sets["ours-0"], seed=7)
    return "mixed runs: .*ours-0 has another seed \\(7, not 0\\)"


def spoil_prompts(sets):
    made_anew(sets["ours-0"], ITEMS[::-1])
    return "mixed runs: .*ours-0 has other prompts"


def spoil_record(sets):
    write_record(sets["base"], replace(read_record(sets["base"]), seed=7))
    return "base/images/.*: another set's image"


def spoil_model(sets):
    made_anew(sets["ours-1"], model={"name": "lumina"})
    for name in ("hpsv3", "deqa"):
        write_lines(sets["ours-1"], ITEMS, name, lambda n, name=name: ({name: n}, ""))
    return "mixed runs: .*ours-1 is of lumina, .*ours-0 of mmada, and both are labelled `ours`"


def spoil_weights(sets):
    made_anew(sets["ours-1"], weights="sha256:ours-0")
    for name in ("hpsv3", "deqa"):
        write_lines(sets["ours-1"], ITEMS, name, lambda n, name=name: ({name: n}, ""))
    return "ours-1: the same model as .*ours-0"


def spoil_folder(sets):
    sets["again"] = sets["base"]
    return "base: the same set as .*base; name it once"


def spoil_one_scorer(sets):
    (sets["ours-0"] / "scores/hpsv3.json").unlink()
    return "ours-0: not scored by hpsv3, but .*base is \\(htgrpo eval score .*ours-0 --scorer hpsv3\\)"


def spoil_all_scores(sets):
    shutil.rmtree(sets["base"] / "scores")
    return "base: not scored yet"


def spoil_lines(sets):
    path = sets["base"] / "scores/geneval.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    return "geneval.jsonl:24: 23 lines do not match the set's 24 images"


def spoil_values(sets):
    path = sets["base"] / "scores/deqa.jsonl"
    path.write_text(path.read_text().replace('"deqa":', '"other":'))
    return "deqa.jsonl: not what deqa writes"


def spoil_image(sets):
    path = next((sets["base"] / "images").rglob("00002.png"))
    shutil.copy(path.with_name("00001.png"), path)
    return "base"


def spoil_the_model_asked_for(sets):
    sets["--model"] = "lumina"
    return "base: a set of the model mmada, not of lumina"


def spoil_nothing(sets):
    sets["empty"] = sets["base"].parent / "empty"
    sets["empty"].mkdir()
    return "empty: no set of images there"


SPOILS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_sets_that_cannot_be_compared_are_refused_by_name(spoil, sets):
    message = spoil(sets)
    model = sets.pop("--model", None)
    with pytest.raises(UserError, match=message) as refused:
        read_sets(list(sets.values()), model)
    assert "\n" not in str(refused.value)


def test_make_compare_takes_scored_sets_instead_of_training():
    said = subprocess.run(
        ["make", "-n", "compare", "MODEL=lumina", "RUNS=a b", "BASELINE=base", "OUT=c", "READY="],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "htgrpo eval summarize a b --baseline 'base' --out 'c' --model 'lumina'" in " ".join(
        said.replace("\\\n", "").split()
    )
    assert "htgrpo compare" not in said


def test_images_without_a_score_are_left_out_of_means_and_said_on_the_page(sets, tmp_path):
    for folder in sets.values():
        some = [{"unifiedreward": 3.0 + n} if n % 4 or n > 4 else {} for n in range(24)]  # images 0 and 4 have none
        write_lines(folder, ITEMS, "unifiedreward", lambda n, some=some: (some[n], ""), lacking=2)
    result = write_set_comparison(read_sets(list(sets.values())), "base", tmp_path, Console(file=io.StringIO()))
    preference = next(table for table in result["tables"] if table["name"] == "preference")
    mean = np.mean([3.0 + n for n in range(24) if n not in (0, 4)])
    assert row(preference, "base")["scores"]["unifiedreward"]["score"] == pytest.approx(mean)


def test_part_of_a_benchmark_is_called_so(sets, tmp_path):
    made_anew(sets["base"], limit=3)
    result = write_set_comparison(read_sets([sets["base"]]), None, tmp_path, Console(file=io.StringIO()))
    assert result["tables"][0]["limit"] == 3
    for kind in ("md", "html"):
        assert "Not the whole benchmark: 3 prompts of each task." in (tmp_path / f"summary.{kind}").read_text()


def test_nothing_is_written_for_what_is_refused(sets, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    asked = ["eval", "summarize", *map(str, sets.values()), "--out", str(out)]
    assert run(monkeypatch, *asked, "--baseline", "nobody") == 2
    assert capsys.readouterr().err == "error: --baseline nobody: no such row of GenEval (one of base, ours)\n"
    assert not out.exists()
    assert run(monkeypatch, *asked, "--baseline", "base") == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
