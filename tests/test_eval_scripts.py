"""launch/eval: a script per scorer that needs an environment. Stubs replace Python, git's remote and the scorer."""

import os
import subprocess

import pytest

from helpers.environments import PYTHON
from helpers.paths import ROOT
from htgrpo_ext.imagesets.scorers import SCORERS

FOLDER = ROOT / "launch/eval"
SCRIPTS = sorted(path for path in FOLDER.glob("*.sh") if path.name != "official.sh")
OFFICIAL = ("dpg", "geneval")


@pytest.fixture
def run(tmp_path):
    """Runs a script with some arguments; environments are empty."""
    for name, text in {"python": PYTHON, "htgrpo": '#!/usr/bin/env bash\necho "$@"\n'}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "unifiedreward-prompt.txt").write_text("[{caption}] Final Score:")
    found = {"PYTHON": str(tmp_path / "python"), "CALLS": str(tmp_path / "calls"), "BROKEN": "nothing"}
    found |= {"HTGRPO_REWARD_ENVIRONMENTS": str(tmp_path), "HTGRPO_EVAL_ENVIRONMENTS": str(tmp_path)}
    found |= {"HTGRPO": str(tmp_path / "htgrpo")}

    def result(name: str, *arguments: str, **environment: str):
        command = [FOLDER / f"{name}.sh", *arguments]
        return subprocess.run(command, env=os.environ | found | environment, capture_output=True, text=True, timeout=60)

    return result


def test_each_scorer_but_the_micro_worlds_has_a_script():
    assert {path.stem for path in SCRIPTS} == {scorer.name for scorer in SCORERS} - {"micro"}


@pytest.mark.parametrize("name", [path.stem for path in SCRIPTS if path.stem not in OFFICIAL])
def test_a_reward_model_scores_in_the_environment_of_its_server(run, name):
    done = run(name, "SET", "--set", "device=cuda:1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"eval score --scorer {name} ") and done.stdout.endswith(" SET --set device=cuda:1\n")
    done = run(name, "--setup-only")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_benchmarks_own_script_needs_its_checkout_at_the_commit(run, tmp_path, name):
    mirror = tmp_path / "mirror"
    git = ["git", "-C", mirror, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", mirror], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "another"], check=True)
    done = run(name, "SET", **{f"{name.upper()}_URL": str(mirror)})
    assert done.returncode == 2 and done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"error: {name}: no commit ") and line.endswith(f"{name.upper()}_URL=/path/or/url)")
    assert not (tmp_path / f"{name}-checkout").exists() and not (tmp_path / "calls").exists()


def at_commit(tmp_path, name, monkeypatch):
    """A checkout that says that it is at the commit."""
    commit = next(scorer for scorer in SCORERS if scorer.name == name).model_fields["commit"].default
    (tmp_path / f"{name}-checkout/.git").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text(f"#!/usr/bin/env bash\necho {commit}\n")
    (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_dpg_runs_with_its_checkout_and_its_python(run, tmp_path, monkeypatch):
    at_commit(tmp_path, "dpg", monkeypatch)
    done = run("dpg", "SET", "--again")
    assert done.returncode == 0, done.stderr
    options = f"--set checkout={tmp_path}/dpg-checkout --set python={tmp_path}/dpg/bin/python"
    assert done.stdout == f"eval score --scorer dpg {options} SET --again\n"
    calls = (tmp_path / "calls").read_text()
    assert "--no-deps torch==2.1.2\n" in calls and "-e " not in calls and "fastapi" not in calls


def test_geneval_wants_the_detectors_weights(run, tmp_path, monkeypatch):
    at_commit(tmp_path, "geneval", monkeypatch)
    (tmp_path / "geneval-models").mkdir()
    (tmp_path / "geneval-models/dog.jpg").touch()
    (tmp_path / "weights").write_text("not these")
    done = run("geneval", "SET", GENEVAL_DETECTOR=str(tmp_path / "weights"))
    assert done.returncode == 2 and "is not the file that was published at https://download.openmmlab" in done.stderr
    assert "--no-build-isolation --no-deps mmcv-full==1.7.2\n" in (tmp_path / "calls").read_text()
    (tmp_path / "geneval-models/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.pth").touch()
    done = run("geneval", "SET")
    assert done.returncode == 0 and done.stdout.endswith(f" --set models={tmp_path}/geneval-models SET\n"), done.stderr


def test_a_missing_command_is_one_line(run, tmp_path, monkeypatch):
    at_commit(tmp_path, "dpg", monkeypatch)
    done = run("dpg", "SET", HTGRPO="nowhere")
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == (
        "error: no nowhere (make setup, or HTGRPO=/path/to/htgrpo)"
    )
