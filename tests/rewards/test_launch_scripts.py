"""The scripts of launch/rewards, one per heavy reward. A stub replaces Python and the server."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from helpers.environments import FOLDER, PYTHON
from htgrpo_ext.rewards.registry import REWARDS
from htgrpo_ext.rewards.scorers import scorer_class

SCRIPTS = sorted(path for path in FOLDER.glob("*.sh") if path.name != "environment.sh")
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


@pytest.fixture
def run(tmp_path):
    """Runs a script with some arguments; its environments are empty but for a prompt."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    found = {"PYTHON": str(python), "CALLS": str(tmp_path / "calls"), "BROKEN": "nothing"}
    (tmp_path / "unifiedreward-prompt.txt").write_text("[{caption}] Final Score:")

    def result(script: Path, *arguments: str, **environment: str):
        named = os.environ | found | {"HTGRPO_REWARD_ENVIRONMENTS": str(tmp_path)} | environment
        return subprocess.run([script, *arguments], env=named, capture_output=True, text=True, timeout=60)

    return result


def test_each_heavy_reward_has_a_script():
    own = {reward.scorer for reward in REWARDS.values()} - {"micro", "aesthetic"}  # these two run where the run does
    assert {path.stem for path in SCRIPTS} == own


@every_script
def test_a_script_sets_up_and_serves_the_reward_of_its_name(script, run):
    rows = {name for name, reward in REWARDS.items() if reward.scorer == script.stem}
    assert rows and rows == set(scorer_class(script.stem).rewards)
    named = re.findall(r"^(?:environment|serve) ([a-z0-9]+)", script.read_text(), re.MULTILINE)
    assert set(named) == {script.stem}
    done = run(script, "--port", "1", "--set", "a=b c")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"serve-reward {script.stem} ")
    assert done.stdout.endswith(" --port 1 --set a=b c\n")
    done = run(script, "--setup-only")
    assert (done.returncode, done.stdout) == (0, "")


def test_a_prompt_that_is_not_the_published_one_is_refused(run, tmp_path):
    script, prompt = FOLDER / "unifiedreward.sh", tmp_path / "unifiedreward-prompt.txt"
    prompt.unlink()
    other = tmp_path / "other.py"
    other.write_text("q = f'[{prompt}] Final Score:'\n")
    done = run(script, "--port", "1", UNIFIEDREWARD_SCRIPT=str(other))
    assert done.returncode == 2 and not prompt.exists() and done.stdout == ""
    assert "is not the file that was published" in done.stderr.splitlines()[-1]
    done = run(script, "--port", "1", UNIFIEDREWARD_SCRIPT=str(tmp_path / "nowhere.py"))
    assert done.returncode == 2 and "error: UNIFIEDREWARD_SCRIPT: cannot read" in done.stderr
