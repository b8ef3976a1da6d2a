"""`htgrpo compare --tune`: its stages, what they share and keep, and the tables, made of runs or of the data alone.

Training is replaced: each run's folder is made up, with a score that its settings decide.
"""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from helpers.fabricated import FORWARDS, fabricate, save_evaluation
from helpers.paths import CONFIGS, ROOT
from htgrpo_ext.config import load_settings, save_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.report.comparison import write_comparison
from htgrpo_ext.report.folder import read_prompts, read_scored
from htgrpo_ext.report.summary import write_summary
from htgrpo_ext.report.tuned import remake, write_tuned
from htgrpo_ext.report.tuned_data import read_data, write_data
from htgrpo_ext.workflow import compare_tuned as workflow
from htgrpo_ext.workflow.compare_tuned import compare_tuned
from htgrpo_ext.workflow.tuned_runs import Tuned, cycles_within
from htgrpo_ext.workflow.tuning import read_comparison

FILES = [CONFIGS / "model/micro.yaml"]
PLAN = {
    "cycles": 3,
    "seeds": [0, 1],
    "reference": "htgrpo",
    "budget_of": "maskgrpo",
    "tuning": {"seed": 100, "eval_seed": 2000, "learning_rates": [1e-4, 3e-4], "tie": 0.005},
    "timing": {"rounds": 2, "cycles": 3},
    "methods": {
        "htgrpo": {
            "settings": {"method.ties": "raster"},
            "setting": "method.structure_ratio",
            "values": [0.2],
            "variants": {"shuffled": {"method.ties": "shuffled"}},
        },
        "maskgrpo": {
            "setting": "method.min_mask_rate",
            "values": [0.8],
            "published": {"method.min_mask_rate": 0.8, "loop.micro_batches": 4},
        },
    },
    "check": {"seed": 0, "learning_rates": [1e-4, 3e-4], "reported": {"htgrpo": [0.5, 0.6]}},
}
# The same methods, tuned elsewhere: nothing is tried, nothing is timed.
ELSEWHERE = {
    "cycles": 3,
    "seeds": [0, 1],
    "reference": "htgrpo",
    "methods": {
        "htgrpo": {"learning_rate": 3e-4, "setting": "method.structure_ratio"},
        "maskgrpo": {"learning_rate": 1e-4, "setting": "method.min_mask_rate", "value": 0.8},
    },
}
# Seconds of scoring and updates of a cycle: maskgrpo's are 4 times those of htgrpo.
SECONDS = {"htgrpo": 3.0, "maskgrpo": 12.0}


def noise(settings) -> float:
    """Share of wrong objects in the images: htgrpo is best at 3e-4, maskgrpo at 1e-4 with a mask rate of 0.8."""
    if settings.method.name == "htgrpo":
        return 0.1 if settings.loop.learning_rate > 2e-4 else 0.5
    masks = settings.method.model_dump()["min_mask_rate"]
    return 0.2 if settings.loop.learning_rate < 2e-4 and masks > 0.7 else 0.6


def train(settings) -> None:
    folder = settings.folder
    fabricate(folder, settings, prompts_per_task=4, cycles=settings.loop.cycles)
    if settings.benchmark:
        prompts = read_prompts(folder)
        save_evaluation(folder, prompts, 4, {"base": 0.6}, seed=settings.eval.seed)
        save_evaluation(folder, prompts, 4, {"trained": noise(settings)}, seed=settings.seed)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "cycle":  # the first cycle is slow, and must not count
            each = SECONDS[settings.method.name] * (100 if line["cycle"] == 0 else 1)
            line["seconds"] = {"rollout": 5.0, "score": each / 4, "update": each * 3 / 4}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_settings(settings, folder / "config.yaml")
    write_summary(folder, settings, 0, {})


class Done:
    """A whole comparison."""

    def __init__(self, root: Path):
        self.out, self.plan = root / "out", root / "plan.yaml"
        self.plan.write_text(yaml.safe_dump(PLAN, sort_keys=False))
        self.calls: list[tuple[list[str], int]] = []  # of each stage: the runs that were started, and how many at once

    def compare(self, dry: bool = False) -> None:
        compare_tuned(FILES, self.plan, "", 2, [], self.out, dry)

    def run_all(self, runs, jobs, console) -> list:
        todo = [run for run in runs if run.state != "finished"]
        self.calls.append(([str(run.folder.relative_to(self.out)) for run in todo], jobs))
        for run in todo:
            train(run.settings)
        return []


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    found = Done(tmp_path_factory.mktemp("tuned"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "run_all", found.run_all)
        patch.setattr(workflow, "stop_on_sigterm", lambda: None)
        found.compare()
        first, found.calls = found.calls, []
        found.compare()
        found.calls = [*first, *found.calls]
        yield found


def test_each_stage_runs_what_the_one_before_chose(done):
    stages = [names for names, _ in done.calls[:5]]
    assert stages[0] == [f"{m}-lr{rate}-s100" for m in ("htgrpo", "maskgrpo") for rate in ("1e-4", "3e-4")]
    # htgrpo's best rate is 3e-4, maskgrpo's rates tie at its default
    assert stages[1] == ["htgrpo-lr3e-4-structure_ratio0.2-s100", "maskgrpo-lr1e-4-min_mask_rate0.8-s100"]
    seeds = (0, 1)
    assert set(stages[2]) == {
        *(f"htgrpo-lr3e-4-s{s}" for s in seeds),  # both values tie, so the default
        *(f"htgrpo-lr3e-4-shuffled-s{s}" for s in seeds),
        *(f"maskgrpo-lr1e-4-min_mask_rate0.8-s{s}" for s in seeds),
        *(f"maskgrpo-lr1e-4-published-s{s}" for s in seeds),
        "htgrpo-lr1e-4-s0",  # the check's other run is one of the comparison's
    }
    assert stages[3] == ["timing/htgrpo-1", "timing/maskgrpo-1", "timing/htgrpo-2", "timing/maskgrpo-2"]
    # 3 cycles of 12 s hold 12 of 3 s; maskgrpo's own are those of stage 3
    assert stages[4] == [f"htgrpo-lr3e-4-c12-s{s}" for s in seeds]


def test_runs_are_timed_one_at_a_time(done):
    assert [jobs for _, jobs in done.calls[:5]] == [2, 2, 2, 1, 2]


def test_timed_runs_have_the_tuned_settings_and_no_evaluation(done):
    settings = load_settings([done.out / "timing/maskgrpo-2/config.yaml"])
    assert (settings.loop.learning_rate, settings.method.model_dump()["min_mask_rate"], settings.eval) == (
        1e-4,
        0.8,
        None,
    )


def test_finished_runs_are_kept(done):
    assert [names for names, _ in done.calls[5:]] == [[], [], [], [], []]


def test_tuning_runs_have_their_own_noise_and_the_others_the_models(done):
    seeds = {name: run["eval_seed"] for name, run in read_data(done.out / "tables")["runs"].items()}
    assert {seed for name, seed in seeds.items() if name.endswith("s100")} == {2000}
    assert {seed for name, seed in seeds.items() if not name.endswith("s100")} == {1000}


def shares(done, *names: str) -> np.ndarray:
    """Correct images of each run, of the runs' own files. [S, Q, I]"""
    return np.stack([read_scored(done.out / name, "trained").correct_QI for name in names]).astype(float)


def table(done, title: str) -> dict[str, dict[str, str]]:
    """A table of tables.md: by row and by column."""
    text = next(part for part in (done.out / "tables/tables.md").read_text().split("\n## ") if part.startswith(title))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


def test_differences_are_paired_by_prompt_and_seed(done):
    rows = table(done, "Equal rollouts:")
    ours = shares(done, *(f"htgrpo-lr3e-4-s{s}" for s in (0, 1)))
    theirs = shares(done, *(f"maskgrpo-lr1e-4-min_mask_rate0.8-s{s}" for s in (0, 1)))
    difference = theirs.mean() - ours.mean()  # tasks of one size
    assert rows["maskgrpo"]["less htgrpo"].startswith(f"{difference:+.3f} [")
    assert rows["maskgrpo"]["of each seed"] == " ".join(f"{each.mean():.3f}" for each in theirs)
    base = read_scored(done.out / "htgrpo-lr3e-4-s0", "base").correct_QI.mean()
    assert rows["htgrpo"]["gain"].startswith(f"{ours.mean() - base:+.3f} [")
    assert rows["base"]["overall"].startswith(f"{base:.3f} [") and rows["htgrpo"]["less htgrpo"] == "–"
    scored = FORWARDS["old"] + FORWARDS["reference"] + FORWARDS["new"]
    assert (rows["htgrpo"]["rows scored a cycle"], rows["maskgrpo"]["seconds"]) == (f"{scored}", "36.0")


def test_intervals_are_those_of_an_untuned_comparison_of_the_same_runs(done, tmp_path):
    folders = [done.out / f"htgrpo-lr3e-4-s{s}" for s in (0, 1)]
    overall = write_comparison(folders, tmp_path, Console(file=io.StringIO()))["methods"]["htgrpo"]["overall"]
    low, high = overall["interval"]
    assert table(done, "Equal rollouts:")["htgrpo"]["overall"] == f"{overall['mean']:.3f} [{low:.3f}, {high:.3f}]"


def test_equal_seconds_give_a_cheap_method_more_cycles(done):
    rows = table(done, "Equal seconds:")
    assert {m: (row["cycles"], row["seconds"]) for m, row in rows.items() if m != "base"} == {
        "htgrpo": ("12", "36.0"),
        "maskgrpo": ("3", "36.0"),
    }
    longer = shares(done, *(f"htgrpo-lr3e-4-c12-s{s}" for s in (0, 1)))
    assert rows["htgrpo"]["overall"].startswith(f"{longer.mean():.3f} [")


def test_other_tables_say_what_was_tried_and_chosen(done):
    tuning = table(done, "Tuning")
    first = shares(done, "maskgrpo-lr1e-4-s100").mean()
    assert tuning["maskgrpo"]["1e-4"] == f"{first:.3f}"
    assert tuning["maskgrpo"]["chosen"] == "1e-4, min_mask_rate 0.8"
    assert tuning["htgrpo"]["chosen"] == "3e-4, structure_ratio 0.3 (default)"
    assert list(table(done, "Variants")) == ["htgrpo", "htgrpo, shuffled"]
    settings = {name: row["settings"] for name, row in table(done, "Published").items()}
    assert settings == {"maskgrpo": "min_mask_rate 0.8", "maskgrpo, published": "min_mask_rate 0.8, micro_batches 4"}
    check = table(done, "Default settings at seed 0")["htgrpo"]
    last = shares(done, "htgrpo-lr3e-4-s0").mean()
    assert (check["learning rate"], check["apart"]) == ("3e-4", f"{last - 0.6:+.3f}")
    text = (done.out / "tables/tables.md").read_text()
    assert "the largest rate 3e-4: htgrpo." in text and "the smallest rate 1e-4: maskgrpo." in text


def test_tables_from_the_data_alone_are_those_from_the_runs(done, tmp_path):
    data = Tuned(read_comparison(done.plan), tuple(FILES), (), done.out).data()
    write_data(data, tmp_path / "again")
    assert read_data(tmp_path / "again") == data
    for name in ("comparison.json", "verdicts.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (done.out / "tables" / name).read_bytes()
    remake(tmp_path / "again")
    assert (tmp_path / "again/tables.md").read_text() == (done.out / "tables/tables.md").read_text()
    assert (tmp_path / "again/scores.png").stat().st_size > 10_000


def test_the_command_makes_the_tables_without_torch(done, tmp_path):
    copy = shutil.copytree(done.out / "tables", tmp_path / "copy")
    (copy / "tables.md").unlink()
    code = "import sys; sys.modules['torch'] = None; from htgrpo_ext.cli import main; main()"
    said = subprocess.run([sys.executable, "-c", code, "compare-tables", str(copy)], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert (copy / "tables.md").read_text() == (done.out / "tables/tables.md").read_text()
    assert "Equal seconds" in said.stdout


@pytest.mark.parametrize("file", sorted(ROOT.glob("benchmarks/*/comparison.json")), ids=lambda file: file.parent.name)
def test_committed_tables_are_those_of_the_committed_data(file, tmp_path):
    copy = shutil.copytree(file.parent, tmp_path / "copy")
    remake(copy)
    assert (copy / "tables.md").read_text() == (file.parent / "tables.md").read_text()


def test_data_hold_verdicts_of_every_prompt(done):
    head, *rows = csv.reader((done.out / "tables/verdicts.csv").read_text().splitlines())
    column = [int(row[head.index("maskgrpo-lr1e-4-published-s1")]) for row in rows]
    assert column == shares(done, "maskgrpo-lr1e-4-published-s1")[0].sum(1).tolist()


def test_tables_are_made_of_what_is_finished(done, tmp_path):
    data = Tuned(read_comparison(done.plan), tuple(FILES), (), done.out).data()
    for part in ("equal_seconds", "variants", "published", "check"):
        data["parts"][part] = {}
    write_tuned(data | {"seconds": {}}, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "## Equal rollouts" in text and "## Equal seconds" not in text


def test_dry_run_lists_runs_and_states_and_starts_none(done, capsys):
    done.calls = []
    done.compare(dry=True)
    said = capsys.readouterr().out
    assert done.calls == [] and "5. equal seconds: those of 3 cycles of maskgrpo: 4 of 4 known runs finished" in said
    assert any(line.split()[:4] == ["htgrpo-lr3e-4-c12-s1", "12", "cycles", "finished"] for line in said.splitlines())


def test_before_anything_ran_a_dry_run_says_what_comes_later(tmp_path, capsys):
    Done(tmp_path).compare(dry=True)
    said = capsys.readouterr().out
    assert "1. learning rates: 0 of 4 known runs finished" in said
    assert "later  maskgrpo: 1 values of method.min_mask_rate at its best rate" in said
    assert not (tmp_path / "out").exists()


def test_methods_that_were_tuned_elsewhere_are_compared_at_once(tmp_path, monkeypatch):
    case = Done(tmp_path)
    case.plan.write_text(yaml.safe_dump(ELSEWHERE, sort_keys=False))
    monkeypatch.setattr(workflow, "run_all", case.run_all)
    monkeypatch.setattr(workflow, "stop_on_sigterm", lambda: None)
    case.compare()
    names = ["htgrpo-lr3e-4-s0", "htgrpo-lr3e-4-s1"]
    names += [f"maskgrpo-lr1e-4-min_mask_rate0.8-s{seed}" for seed in (0, 1)]
    assert case.calls == [(names, 2)]
    text = (case.out / "tables" / "tables.md").read_text()
    assert "tuned elsewhere; nothing was tried here. The comparison has seeds 0, 1." in text
    assert "## Equal rollouts: 3 cycles" in text and "## Tuning" not in text and "Seconds are" not in text
    row = next(line for line in text.splitlines() if line.startswith("| maskgrpo | "))
    assert row.split(" | ")[1:3] == ["1e-4", "min_mask_rate 0.8"]
    assert "structure_ratio 0.3 (default)" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget_of": "maskgrpo"}, "timing and budget_of belong together; give both or neither"),
        (
            {"methods": {"htgrpo": {"setting": "method.structure_ratio"}}},
            "methods.htgrpo: without `tuning` it needs a learning_rate, and no values",
        ),
        (
            {"tuning": PLAN["tuning"]},
            "methods.maskgrpo: learning_rate and value are for files without `tuning`",
        ),
    ],
)
def test_a_file_is_of_methods_to_tune_or_of_tuned_ones(tmp_path, change, said):
    case = Done(tmp_path)
    case.plan.write_text(yaml.safe_dump(ELSEWHERE | change, sort_keys=False))
    with pytest.raises(UserError, match=f"{case.plan}: {said}"):
        case.compare(dry=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"setting": "method.structure_ration"}, "setting method.structure_ration is no number"),
        ({"values": [1.5]}, "method.structure_ratio must be less than 1"),
        ({"variants": {"x": {"method.ties": "sorted"}}}, "method.ties must be 'raster' or 'shuffled'"),
    ],
)
def test_settings_that_no_run_can_have_are_refused_before_anything_runs(tmp_path, change, said):
    case = Done(tmp_path)
    methods = PLAN["methods"] | {"htgrpo": PLAN["methods"]["htgrpo"] | change}
    case.plan.write_text(yaml.safe_dump(PLAN | {"methods": methods}, sort_keys=False))
    with pytest.raises(UserError, match=rf"{case.plan}: methods.htgrpo: .*{said}"):
        case.compare(dry=True)


def test_a_run_with_other_settings_is_refused_before_anything_runs(tmp_path, monkeypatch):
    case = Done(tmp_path)
    tuned = Tuned(read_comparison(case.plan), tuple(FILES), (), case.out)
    run = tuned.run("htgrpo", 1e-4, 0)  # of the check, in the third stage
    save_settings(run.settings.model_copy(update={"seed": 5}), run.folder / "config.yaml")
    monkeypatch.setattr(workflow, "run_all", case.run_all)
    with pytest.raises(UserError, match="htgrpo-lr1e-4-s0: holds a run with other settings"):
        case.compare()
    assert case.calls == []


@pytest.mark.parametrize(
    ("budget", "each", "cycles"), [(1.0, 0.1, 10), (36.0, 12.0, 3), (35.9, 12.0, 2), (1.0, 3.0, 1)]
)
def test_whole_cycles_within_a_budget(budget, each, cycles):
    assert cycles_within(budget, each) == cycles


def test_missing_or_broken_data_are_named(tmp_path):
    with pytest.raises(UserError, match="comparison.json: missing"):
        remake(tmp_path)
    (tmp_path / "comparison.json").write_text("{")
    (tmp_path / "verdicts.csv").write_text("task,prompt\n")
    with pytest.raises(UserError, match="is broken"):
        remake(tmp_path)
