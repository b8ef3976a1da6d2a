"""What the tests in MaskGRPO's own loop share: is it there, and a run of it in a process of its own."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from helpers.paths import PYTHONPATH, ROOT
from htgrpo_ext.errors import UserError
from htgrpo_ext.maskgrpo.launch import require_upstream

STUB = Path(__file__).parent / "upstream_stub.py"


def absent() -> str | None:
    """Why the tests cannot run, or None."""
    try:
        require_upstream()
        for name in ("datasets", "wandb", "diffusers", "einops"):
            version(name)
    except UserError as error:
        return str(error)
    except PackageNotFoundError as error:
        return f"{error} is not installed: make setup-upstream"
    return None


REASON = absent()
needs_upstream = [pytest.mark.upstream, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


def run_python(script: Path, *arguments: str, launcher: tuple[str, ...] = (), environment: dict | None = None) -> str:
    """Run a script of tests/ in a process of its own; its output."""
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": PYTHONPATH,
        "WANDB_MODE": "disabled",
        "MALLOC_MMAP_MAX_": "0",  # without them, page faults of the wide logits double the time of a forward
        "MALLOC_TRIM_THRESHOLD_": "40000000000",
        **(environment or {}),
    }
    command = [sys.executable, *launcher, str(script), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout
