"""The scripts in benchmarks/: what they measure is configured by settings that still load."""

import comparison_runs
import pytest
import scoring_cost

from helpers.fabricated import fabricate
from helpers.paths import CONFIGS
from htgrpo_ext.config import save_settings
from htgrpo_ext.report.folder import read_scored
from htgrpo_ext.report.summary import write_summary
from htgrpo_ext.report.tuned_data import gather
from htgrpo_ext.workflow.compare import planned


@pytest.mark.parametrize("method", ["maskgrpo", "htgrpo"])
def test_settings_of_the_scoring_benchmark_are_valid(method, tmp_path):
    settings = scoring_cost.cycle_settings(method, tmp_path)
    assert (settings.model.name, settings.method.name) == ("mmada", method)


def test_packed_runs_are_finished_runs_and_give_the_same_tables(tmp_path):
    runs, again, archive = tmp_path / "runs", tmp_path / "again", tmp_path / "a.xz"
    files = [CONFIGS / "model/micro.yaml", CONFIGS / "method/htgrpo.yaml"]
    for seed in (0, 1, 2):
        run = planned(files, [f"seed={seed}"], runs / f"some/htgrpo-s{seed}")
        save_settings(run.settings, fabricate(run.folder, run.settings, prompts_per_task=4) / "config.yaml")
        if seed < 2:  # the last is not finished
            write_summary(run.folder, run.settings, 0, {})
    assert comparison_runs.pack(runs, archive) == 2
    first = archive.read_bytes()
    assert comparison_runs.pack(runs, archive) == 2 and archive.read_bytes() == first

    kept = again / "some/htgrpo-s1/summary.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("here already")
    assert comparison_runs.unpack(archive, again) == 1
    assert kept.read_text() == "here already" and not (again / "some/htgrpo-s2").exists()
    run = planned(files, ["seed=0"], again / "some/htgrpo-s0")
    assert run.state == "finished" and run.cycles_done() == 3
    old = runs / "some/htgrpo-s0"
    assert (read_scored(run.folder, "trained").correct_QI == read_scored(old, "trained").correct_QI).all()
    parts = [{"grid": {"htgrpo": [folder]}} for folder in (run.folder, old)]
    assert gather({}, {}, parts[0], {}) == gather({}, {}, parts[1], {})
