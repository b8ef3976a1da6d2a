"""The scripts of launch/rewards, as far as they can be tried without making an environment."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from htgrpo_ext.rewards.scorers import scorer_class, scorer_names

FOLDER = Path(__file__).resolve().parent.parent / "launch" / "rewards"
SCRIPTS = sorted(path for path in FOLDER.glob("*.sh") if path.name != "environment.sh")
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
PUBLISHED = "q = f'[{prompt}] Final Score:'\n"


def bash(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", *map(str, arguments)], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def environments(tmp_path):
    """Environments that are ready, and only say what they are asked."""

    def ready(script):
        folder = tmp_path / script.stem
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "htgrpo").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (folder / "bin" / "htgrpo").chmod(0o755)
        # The list of requirements as the script itself has it: `environment` replaced by one that keeps its arguments.
        body = script.read_text().replace(
            'source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"',
            f'source "{FOLDER}/environment.sh"\n'
            'environment() { printf "%s\\n" "${SERVING[@]}" "${@:2}" >"$ENVIRONMENTS/$1/.ready"; exit; }',
        )
        own = tmp_path / "own.sh"
        own.write_text(body)
        assert bash(own, HTGRPO_REWARD_ENVIRONMENTS=str(tmp_path)).returncode == 0
        (tmp_path / "unifiedreward-prompt.txt").write_text("[{caption}] Final Score:")
        return tmp_path

    return ready


def test_there_is_a_script_for_each_heavy_reward():
    assert {path.stem for path in SCRIPTS} >= {"clip", "geneval", "imagereward", "unifiedreward"}


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.stem)
def test_every_script_parses(script):
    done = bash("-n", script)
    assert (done.returncode, done.stderr) == (0, "")


@every_script
def test_every_script_names_its_own_scorer_and_can_be_started(script):
    assert os.access(script, os.X_OK)
    assert script.stem in scorer_names() and script.stem in scorer_class(script.stem).rewards
    named = re.findall(r"^ *(?:environment|serve) ([a-z0-9]+)", script.read_text(), re.MULTILINE)
    assert set(named) == {script.stem} and len(named) >= 2


@every_script
def test_a_script_whose_environment_is_ready_serves_with_the_given_flags(script, environments):
    folder = str(environments(script))
    done = bash(script, "--port", "1", "--set", "a=b c", HTGRPO_REWARD_ENVIRONMENTS=folder)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:2] == ["serve-reward", script.stem] and words[-4:] == ["--port", "1", "--set", "a=b c"]
    done = bash(script, "--setup-only", HTGRPO_REWARD_ENVIRONMENTS=folder)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_prompt_that_is_not_the_published_one_is_refused(environments, tmp_path):
    script = FOLDER / "unifiedreward.sh"
    folder = environments(script)
    prompt = folder / "unifiedreward-prompt.txt"
    prompt.unlink()
    other = tmp_path / "other.py"
    other.write_text(PUBLISHED)
    done = bash(script, "--port", "1", HTGRPO_REWARD_ENVIRONMENTS=str(folder), UNIFIEDREWARD_SCRIPT=str(other))
    assert done.returncode == 2 and not prompt.exists() and done.stdout == ""
    assert done.stderr.startswith("error: ") and "is not the file that was published" in done.stderr
    done = bash(script, HTGRPO_REWARD_ENVIRONMENTS=str(folder), UNIFIEDREWARD_SCRIPT=str(tmp_path / "nowhere.py"))
    assert done.returncode == 2 and "error: UNIFIEDREWARD_SCRIPT: cannot read" in done.stderr
