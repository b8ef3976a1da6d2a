"""`htgrpo ablate`: which runs it needs, what it reuses, and its table and figure."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from helpers.fabricated import fabricate, save_evaluation, settings_of
from helpers.paths import CONFIGS
from htgrpo_ext.config import ablation_files, save_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.report.ablation import ABLATIONS, FULL, of_runs, of_table, write_ablation
from htgrpo_ext.report.folder import read_prompts
from htgrpo_ext.report.summary import method_label, write_summary
from htgrpo_ext.workflow import ablate as workflow
from htgrpo_ext.workflow.ablate import ablate
from htgrpo_ext.workflow.compare import plan

FILES = [CONFIGS / "model/micro.yaml"]
# trained share of wrong objects by label; 0 is a perfect score
NOISE = {FULL: 0.1, "a4-large-ratio": 0.9, "a4-low-ratio": 0.1, "a4-small-ratio": 0.3}


def fabricated(folder: Path, label: str, seed: int, ratio: float) -> Path:
    settings = settings_of(folder, method={"name": "htgrpo", "structure_ratio": ratio}, seed=seed, label=label)
    fabricate(folder, settings, cycles=1)
    save_evaluation(folder, read_prompts(folder), 4, {"base": 0.6}, seed=99)
    save_evaluation(folder, read_prompts(folder), 4, {"trained": NOISE[label]}, seed=seed)
    write_summary(folder, settings, 0, {})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, list[Path]]:
    """Three seeds of ablation 4."""
    root = tmp_path_factory.mktemp("ablate")
    ratios = {FULL: 0.3, "a4-large-ratio": 0.5, "a4-low-ratio": 0.2, "a4-small-ratio": 0.1}
    return {label: [fabricated(root / f"{label}-s{s}", label, s, r) for s in (0, 1, 2)] for label, r in ratios.items()}


def test_every_ablation_file_is_a_variant_of_one_ablation_and_reachable():
    found = [file for number in ABLATIONS for *_, file in ablation_files(number)[1:]]
    assert sorted(found) == sorted(Path(f"configs/ablation/{file.name}") for file in CONFIGS.glob("ablation/*.yaml"))
    for number in ABLATIONS:
        planned = plan(FILES, ablation_files(number), 1, [], Path("nowhere"))
        assert [method_label(run.settings) for run in planned] == [
            FULL,
            *(f[-1].stem for f in ablation_files(number)[1:]),
        ]
        assert {label for label in ABLATIONS[number].paper} <= {method_label(run.settings) for run in planned}


def test_paper_numbers_are_those_of_the_files():
    for numbers in ABLATIONS.values():
        for label, score in numbers.paper.items():
            if label != FULL:
                assert f"{100 * score:.4g}" in (CONFIGS / f"ablation/{label}.yaml").read_text()


def test_rows_are_means_over_seeds_and_differences_are_paired(runs):
    result = of_runs(4, runs)
    correct = {
        label: np.stack([np.load(folder / "eval/trained.npz")["correct"] for folder in folders])
        for label, folders in runs.items()
    }
    for row in result["rows"]:
        assert row["of_seeds"] == pytest.approx(correct[row["label"]].mean((1, 2)))  # tasks of one size
        assert row["mean"] == pytest.approx(correct[row["label"]].mean())
        if row["label"] != FULL:
            assert row["difference"]["mean"] == pytest.approx(correct[row["label"]].mean() - correct[FULL].mean())
    beyond = {row["label"]: row["difference"]["beyond_noise"] for row in result["rows"][1:]}
    assert beyond == {"a4-large-ratio": True, "a4-low-ratio": False, "a4-small-ratio": True}
    same = next(row["difference"] for row in result["rows"] if row["label"] == "a4-low-ratio")
    assert same["mean"] == 0 and same["interval"] == [0, 0]  # the same images: pairing leaves no noise


def test_table_names_the_papers_numbers_as_the_papers(runs, tmp_path):
    said = io.StringIO()
    write_ablation(of_runs(4, runs), tmp_path, Console(file=said, width=200))
    assert json.loads((tmp_path / "ablation-4.json").read_text())["rows"][0]["label"] == FULL
    markdown = (tmp_path / "ablation-4.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line[:1] == "|"]
    assert lines[0][-1] == "the paper's"
    assert {line[0]: line[-1] for line in lines[2:]} == {
        "full method": "0.833",
        "large ratio": "not in its text",
        "low ratio": "not in its text",
        "small ratio": "0.802",
    }
    assert "another model and another benchmark" in markdown and "small ratio" in said.getvalue()


@pytest.mark.parametrize("number", [1, 4])
def test_figure_is_drawn_from_any_ablation_files(runs, tmp_path, number):
    write_ablation(of_runs(number, runs), tmp_path, Console(file=io.StringIO()))
    assert Image.open(tmp_path / f"ablation-{number}.png").width > 1000


def test_runs_evaluated_otherwise_are_refused(runs, tmp_path):
    other = tmp_path / "other"
    settings = settings_of(other, method={"name": "htgrpo"}, label="a4-up")
    settings = settings.model_copy(update={"eval": settings.eval.model_copy(update={"seed": 7})})
    write_summary(fabricate(other, settings), settings, 0, {})
    with pytest.raises(UserError, match=f"{other}: only runs that were evaluated alike"):
        of_runs(4, {FULL: runs[FULL][:1], "a4-up": [other]})


def test_table_of_image_sets_gives_the_same_rows(tmp_path):
    def overall(score: float, **more) -> dict:
        return {"overall": {"score": score, "low": score - 0.01, "high": score + 0.01} | more}

    rows = {
        "base": (0.5, overall(-0.3, beyond_noise=True)),
        FULL: (0.8, {}),
        "a5-uniform-credit": (0.81, overall(0.01, beyond_noise=False)),
        "a5-revealed-structure": (0.7, overall(-0.1, beyond_noise=True)),
    }
    rows = [
        {"label": label, "sets": ["s0", "s1"], "scores": overall(score), "differences": differences}
        for label, (score, differences) in rows.items()
    ]
    settings = {row["label"]: (1000, 0.3) for row in rows[1:]}
    result = of_table(5, {"title": "GenEval", "rows": rows}, settings)
    said = io.StringIO()
    write_ablation(result, tmp_path, Console(file=said, width=200))
    lines = (tmp_path / "ablation-5.md").read_text().splitlines()
    assert lines[0] == "# A5: credit weights and context, GenEval overall"
    assert "| revealed structure | 0.700 [0.690, 0.710] | – | -0.100 [-0.110, -0.090] | yes | 0.806 |" in lines
    assert (result["seeds"], result["cycles"], result["base"]["mean"]) == (2, 1000, 0.5)


# Stands in for `htgrpo train`: puts the fabricated run there, or fails for one label.
STUB = """
import json, pathlib, shutil, sys
out = pathlib.Path([w[4:] for w in sys.argv if w.startswith("out=")][0])
with (out.parent / "calls").open("a") as calls:
    calls.write(out.name + "\\n")
if out.name == "a4-large-ratio-s1":
    sys.exit(1)
shutil.copytree(pathlib.Path(sys.argv[1]) / out.name, out)
settings = (out.parent.parent / f"{out.name}.yaml")
shutil.copy(settings, out / "config.yaml")
"""


def test_full_method_is_trained_once_and_a_failed_variant_is_left_out(runs, tmp_path, monkeypatch):
    (tmp_path / "stub.py").write_text(STUB)
    out = tmp_path / "out"
    for run in plan(FILES, ablation_files(4), 2, [], out):
        save_settings(run.settings, tmp_path / f"{run.folder.name}.yaml")
    command = [sys.executable, str(tmp_path / "stub.py"), str(runs[FULL][0].parent)]
    run_all = workflow.run_all
    monkeypatch.setattr(workflow, "run_all", lambda *arguments: run_all(*arguments, command))
    monkeypatch.setattr(workflow, "stop_on_sigterm", lambda: None)
    written = {}
    monkeypatch.setattr(workflow, "of_runs", lambda number, whole: written.update(whole))
    monkeypatch.setattr(workflow, "write_ablation", lambda *_: None)
    with pytest.raises(UserError, match="a4-large-ratio-s1 failed, see .*\n1 of 8 runs failed"):
        ablate(4, FILES, 2, 2, [], out)
    assert list(written) == [FULL, "a4-low-ratio", "a4-small-ratio"]
    assert len((out / "calls").read_text().split()) == 8
    (out / "calls").unlink()
    with pytest.raises(UserError, match="1 of 8 runs failed"):
        ablate(4, FILES, 2, 2, [], out)
    assert (out / "calls").read_text().split() == ["a4-large-ratio-s1"]
    shutil.rmtree(out)
