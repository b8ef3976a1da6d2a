"""`htgrpo compare`: what is run, resumed and skipped, and the table of finished runs."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from helpers.fabricated import FORWARDS, fabricate, save_evaluation, settings_of
from helpers.paths import CONFIGS
from htgrpo_ext.benchmarks.micro import MicroEval
from htgrpo_ext.config import save_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.report.comparison import write_comparison
from htgrpo_ext.report.folder import read_prompts
from htgrpo_ext.report.summary import write_summary
from htgrpo_ext.workflow.compare import plan, run_all

FILES = [CONFIGS / "model/micro.yaml"]

# Stands in for `htgrpo train`: notes how it was called; fails for maskgrpo; else leaves what a run leaves.
STUB = """
import json, os, pathlib, sys
words = sys.argv[1:]
out = pathlib.Path([w[4:] for w in words if w.startswith("out=")][0])
with (out.parent / "calls.jsonl").open("a") as calls:
    base = words[words.index("--base-of") + 1] if "--base-of" in words else None
    calls.write(json.dumps([out.name, "--resume" in words, os.environ["OMP_NUM_THREADS"], base]) + "\\n")
print("hello from", out.name)
if out.name.startswith("maskgrpo"):
    sys.exit(3)
(out / "config.yaml").exists() or sys.exit(4)
score = {"overall": 0.5}
rest = dict.fromkeys(("name", "method", "label", "seed", "reward", "cycles", "seconds"))
(out / "summary.json").write_text(json.dumps(rest | {"base": score, "trained": score}))
"""


@pytest.fixture
def stub(tmp_path):
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    return [sys.executable, str(path)]


def method(tmp_path: Path, **settings) -> Path:
    path = tmp_path / f"{settings.get('label', settings['name'])}.yaml"
    label = settings.pop("label", None)
    path.write_text(yaml.safe_dump({"method": settings} | ({"label": label} if label else {})))
    return path


def planned(tmp_path: Path, *methods: Path, seeds: int = 2, overrides=("loop.cycles=2",)):
    return plan(FILES, [[each] for each in methods], seeds, list(overrides), tmp_path / "out")


def calls(tmp_path: Path) -> dict[str, bool]:
    """Which runs were started, and whether with --resume; the file is read once."""
    path = tmp_path / "out/calls.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return {name: resumed for name, resumed, *_ in lines}


def test_plan_is_every_method_with_every_seed_in_order(tmp_path):
    runs = planned(tmp_path, method(tmp_path, name="d1"), method(tmp_path, name="htgrpo", label="ours"))
    assert [run.folder.name for run in runs] == ["d1-s0", "d1-s1", "ours-s0", "ours-s1"]
    assert [run.settings.seed for run in runs] == [0, 1, 0, 1]
    assert all(run.settings.loop.cycles == 2 and run.state == "new" for run in runs)
    assert runs[1].arguments == (
        *(str(CONFIGS / "model/micro.yaml"), str(tmp_path / "d1.yaml"), "--set", "loop.cycles=2"),
        *("--set", "seed=1", "--set", f"out={tmp_path / 'out/d1-s1'}"),
    )


def test_methods_with_one_label_are_refused(tmp_path):
    other = tmp_path / "again.yaml"
    other.write_text("method: {name: d1, prompt_mask_rate: 0.3}")
    with pytest.raises(UserError, match="both labelled `d1`"):
        planned(tmp_path, method(tmp_path, name="d1"), other)


def test_runs_without_an_evaluation_are_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="runs are compared by their evaluation"):
        planned(tmp_path, method(tmp_path, name="d1"), overrides=["eval=null"])


def test_finished_runs_are_skipped_and_unfinished_ones_resumed(tmp_path, stub):
    runs = planned(tmp_path, method(tmp_path, name="d1"), method(tmp_path, name="htgrpo"))
    for run in runs:
        save_settings(run.settings, run.folder / "config.yaml")
    (runs[0].folder / "summary.json").write_text("{}")
    assert [run.state for run in runs] == ["finished", "unfinished", "unfinished", "unfinished"]
    assert run_all(runs, 2, Console(file=io.StringIO()), stub) == []
    assert calls(tmp_path) == {"d1-s1": True, "htgrpo-s0": True, "htgrpo-s1": True}
    run_all(runs, 2, Console(file=io.StringIO()), stub)
    assert calls(tmp_path) == {}


def test_a_new_run_takes_the_base_models_evaluation_of_a_finished_one_that_has_its_pictures(tmp_path, stub):
    runs = planned(tmp_path, method(tmp_path, name="d1"), method(tmp_path, name="htgrpo"))
    for run in runs[:2]:
        save_settings(run.settings, run.folder / "config.yaml")
        save_evaluation(run.folder, run.settings.benchmark.prompts()[:2], 1, {"base": 0.5})
        (run.folder / "summary.json").write_text("{}")
    packed, finished = (run.folder for run in runs[:2])
    with np.load(packed / "eval/base.npz") as arrays:
        np.savez(packed / "eval/base.npz", **(dict(arrays) | {"kept": arrays["kept"][..., :0]}))
    run_all(runs, 2, Console(file=io.StringIO()), stub)
    lines = [json.loads(line) for line in (tmp_path / "out/calls.jsonl").read_text().splitlines()]
    assert {name: base for name, *_, base in lines} == {f"htgrpo-s{seed}": str(finished) for seed in (0, 1)}


def test_a_run_with_other_settings_is_not_overwritten(tmp_path):
    d1 = method(tmp_path, name="d1")
    run = planned(tmp_path, d1)[1]
    save_settings(run.settings, run.folder / "config.yaml")
    assert planned(tmp_path, d1)[1].state == "unfinished"
    with pytest.raises(UserError, match="d1-s1: holds a run with other settings"):
        planned(tmp_path, d1, overrides=["loop.cycles=3"])


def test_a_failed_run_is_named_and_the_rest_goes_on(tmp_path, stub):
    runs = planned(tmp_path, method(tmp_path, name="maskgrpo"), method(tmp_path, name="d1"), seeds=1)
    save_settings(runs[1].settings, runs[1].folder / "config.yaml")
    said = io.StringIO()
    assert run_all(runs, 1, Console(file=said, width=300), stub) == [runs[0]]
    assert f"maskgrpo-s0  failed with exit code 3, see {tmp_path / 'out/maskgrpo-s0.log'}" in said.getvalue()
    assert (tmp_path / "out/maskgrpo-s0.log").read_text() == "hello from maskgrpo-s0\n"
    assert calls(tmp_path) == {"maskgrpo-s0": False, "d1-s0": True}


def test_threads_are_shared_among_jobs(tmp_path, stub, monkeypatch):
    monkeypatch.setattr("htgrpo_ext.workflow.processes.cores", lambda: 8)
    runs = planned(tmp_path, method(tmp_path, name="maskgrpo"), seeds=2)
    run_all(runs, 3, Console(file=io.StringIO()), stub)
    lines = (tmp_path / "out/calls.jsonl").read_text().splitlines()
    assert [json.loads(line)[2] for line in lines] == ["2", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folders of two methods with two seeds each, and what compare.json, compare.md and the terminal got."""
    out = tmp_path_factory.mktemp("compare")
    folders = []
    for name in ("tracegrpo", "d1"):
        for seed in (0, 1):
            folder = out / f"{name}-s{seed}"
            settings = settings_of(folder, method={"name": name}, seed=seed)
            fabricate(folder, settings)
            prompts = read_prompts(folder)
            save_evaluation(folder, prompts, 4, {"base": 0.6}, seed=99)
            save_evaluation(folder, prompts, 4, {"trained": 0.3}, seed=seed)
            write_summary(folder, settings, 0, {"evaluation": 2.0 + seed})
            folders.append(folder)
    said = io.StringIO()
    result = write_comparison(folders, out, Console(file=said, width=220))
    return folders, out, result, said.getvalue()


def trained(folder: Path) -> np.ndarray:
    with np.load(folder / "eval/trained.npz") as arrays:
        return arrays["correct"]


def test_methods_are_summed_up_over_their_seeds(finished):
    folders, out, result, _ = finished
    assert json.loads((out / "compare.json").read_text()) == result
    assert [run["name"] for run in result["runs"]] == [f"micro-{folder.name}" for folder in folders]
    numbers = result["methods"]["tracegrpo"]
    scores = [trained(folder).mean() for folder in folders[:2]]  # tasks of one size
    assert numbers["overall"]["of_seeds"] == pytest.approx(scores)
    assert numbers["overall"]["mean"] == pytest.approx(sum(scores) / 2)
    low, high = numbers["overall"]["interval"]
    assert low <= numbers["overall"]["mean"] <= high
    base = result["base"]["overall"]["mean"]
    assert numbers["gain"]["median"] == pytest.approx(sum(scores) / 2 - base)
    assert numbers["forwards_per_cycle"] == FORWARDS | {"total": 972}
    assert numbers["seconds"] == {"score_and_update": 9.0, "total": 14.25 + 2.5}  # three cycles of 4.75 s


def test_table_keeps_the_order_given_and_sets_the_paper_beside_it(finished):
    markdown = (finished[1] / "compare.md").read_text()
    measured, paper = (part.split("\n\n")[1].splitlines() for part in markdown.split("# ")[1:3])
    assert [line.split("|")[1].strip() for line in measured] == ["method", "---", "base", "tracegrpo", "d1"]
    assert {line.count("|") for line in measured} == {17}
    assert "| 864 | 0 | 12 | 96 | 972 | 9.0 | 16.8 |" in measured[3]
    assert paper[2] == "| base | .96 | .60 | .45 | .81 | .14 | .25 | .56 |"
    assert paper[3] == "| tracegrpo | 1.00 | .87 | .72 | .92 | .64 | .62 | .79 |"
    assert paper[4] == "| d1 | – | – | – | – | – | – | – |"


def test_printed_table_says_the_same(finished):
    _, out, result, said = finished
    low, high = result["methods"]["d1"]["overall"]["interval"]
    interval = f"[{low:.2f}, {high:.2f}]".replace("0.", ".")
    assert interval in said and interval in (out / "compare.md").read_text()


def test_curves_are_drawn(finished):
    assert Image.open(finished[1] / "compare.png").width > 1000


def test_a_benchmark_without_published_scores_has_none_beside_it(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(MicroEval, "published", None)
    said = io.StringIO()
    result = write_comparison(finished[0], tmp_path, Console(file=said, width=220))
    assert result == finished[2] | {"paper": {}}
    assert "paper" not in (tmp_path / "compare.md").read_text() + said.getvalue()


def test_runs_that_were_not_evaluated_alike_are_refused(finished, tmp_path):
    folder = tmp_path / "other"
    settings = settings_of(folder, method={"name": "d1"})
    settings = settings.model_copy(update={"eval": settings.eval.model_copy(update={"seed": 7})})
    fabricate(folder, settings)
    write_summary(folder, settings, 0, {})
    with pytest.raises(UserError, match=f"{folder}: only runs that were evaluated alike"):
        write_comparison([*finished[0], folder], tmp_path / "out", Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", [60, 80, 120, 220])
def test_no_table_breaks_a_word(finished, tmp_path, width):
    said = io.StringIO()
    write_comparison(finished[0], tmp_path, Console(file=said, width=width))
    lines = said.getvalue().splitlines()
    assert all(len(line) <= max(width, len(str(tmp_path / "compare.html"))) for line in lines)
    for word in ("counting", "attribution", "overall", "reference", "d1", "±", "Student"):
        assert any(word in line for line in lines), word
    assert "…" not in said.getvalue()
