"""The tests of tests/devices on the pretend accelerator, in a process of their own: see there, conftest.py."""

import os
import subprocess
import sys

import pytest

from helpers.paths import PYTHONPATH, ROOT
from helpers.upstream_runs import REASON


def on_the_pretend_accelerator(*arguments: str) -> None:
    """Run pytest in tests/devices; it must pass, and skip nothing."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**clean, "HTGRPO_TEST_DEVICE": "pretend", "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "tests/devices", "-p", "no:cacheprovider", "-rs", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "SKIPPED" not in done.stdout, done.stdout + done.stderr


def test_everything_runs_on_an_accelerator():
    on_the_pretend_accelerator("-m", "not upstream")


@pytest.mark.upstream
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_maskgrpos_loop_runs_on_an_accelerator():
    on_the_pretend_accelerator("-m", "upstream")
