"""launch/rewards/environment.sh: an environment is made once, or not at all. A stub replaces Python."""

import os
import subprocess

import pytest

from helpers.environments import FOLDER, PYTHON
from helpers.paths import ROOT


@pytest.fixture
def launch(tmp_path):
    """Runs a script with a list of requirements: (exit code, standard output, standard error, calls of the Python)."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    calls = tmp_path / "calls"

    def run(requirements: str, *arguments: str, broken: str = "nothing"):
        calls.write_text("")
        script = f'source {FOLDER / "environment.sh"}; environment some {requirements}; serve some "$@"'
        found = {"PYTHON": str(tmp_path / "python"), "CALLS": str(calls), "BROKEN": broken}
        done = subprocess.run(
            ["bash", "-c", script, "some.sh", *arguments],
            env=os.environ | found | {"HTGRPO_REWARD_ENVIRONMENTS": str(tmp_path / "environments")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr, calls.read_text().splitlines()

    return run


def test_an_environment_is_made_once_and_its_server_gets_the_arguments(launch):
    code, out, _, calls = launch("fire==0.7.1 einops -- hpsv3==1.0.0", "--port", "1", "--set", "a=b c")
    assert (code, out) == (0, "serve-reward some --port 1 --set a=b c\n")
    venv, torch, others, alone = calls
    assert venv.startswith("-m venv --clear") and torch.endswith("--no-deps torch")
    assert others.endswith("fire==0.7.1 einops") and "fastapi" in others and "--no-deps" not in others
    assert alone.endswith(f"--no-deps hpsv3==1.0.0 -e {ROOT}")
    assert launch("fire==0.7.1 einops -- hpsv3==1.0.0", "--setup-only") == (0, "", "", [])


def test_other_requirements_make_the_environment_anew(launch):
    launch("fire==0.7.1", "--setup-only")
    assert len(launch("fire==0.7.2", "--setup-only")[3]) == 4
    assert launch("fire==0.7.2", "--setup-only")[3] == []


def test_a_failed_installation_is_one_line_and_repeated_next_time(launch):
    code, out, error, _ = launch("fire", "--port", "1", broken="fire")
    assert (code, out) == (2, "")
    line = error.splitlines()[-1]
    assert line.startswith("error: some: no environment: ERROR: no such package (") and line.endswith("some.log)")
    assert len(launch("fire", "--setup-only")[3]) == 4


def test_constraints_apply_to_requirements_without_a_version(launch, tmp_path):
    launch("transformers==4.45.2 tqdm 'typer[all]>=0.1' -- 'open_clip-torch @ git+https://x'", "--setup-only")
    ours = set((ROOT / "constraints.txt").read_text().splitlines())
    theirs = set((tmp_path / "environments/some/constraints.txt").read_text().splitlines())
    assert theirs <= ours
    assert {line.partition("==")[0] for line in ours - theirs} == {"transformers", "typer", "open_clip_torch"}


def test_a_missing_python_is_one_line(launch, tmp_path):
    (tmp_path / "python").write_text("#!/usr/bin/env bash\nexit 1\n")
    assert launch("fire")[:3] == (2, "", "error: no Python 3.11 or newer found (PYTHON=/path/to/python)\n")


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*.sh")))
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", str(FOLDER / script)], check=True)
