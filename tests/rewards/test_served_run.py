"""A run with its verifier behind a server equals, bit for bit, the run with its verifier in process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.paths import HELPERS, PYTHONPATH
from helpers.run_served import train_both

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}


@pytest.fixture(scope="module")
def url():
    """A real `htgrpo serve-reward micro`."""
    command = [sys.executable, "-m", "htgrpo_ext.cli", "serve-reward", "micro", "--port", "0", "--batch-size", "8"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        ready = process.stdout.readline()
        assert ready.startswith("micro: verdict, partial at http://127.0.0.1:"), ready
        yield ready.split(" at ")[1].split(",")[0]
        process.terminate()


def untimed(folder: Path) -> list[dict]:
    """The metrics without times."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def assert_same_run(out: Path) -> None:
    here, served = untimed(out / "here"), untimed(out / "served")
    assert here == served
    cycles = [record for record in here if record["kind"] == "cycle"]
    assert cycles and all(c["partial_std"] > 0 and c["failed_groups"] == 0 for c in cycles)
    weights = [sorted((out / name / "checkpoints").rglob("*.safetensors")) for name in ("here", "served")]
    assert weights[0] and len(weights[0]) == len(weights[1])
    for files in zip(*weights, strict=True):
        first, second = map(load_file, files)
        assert first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)


def test_a_served_reward_gives_the_same_run_in_one_process(url, tmp_path):
    train_both(url, tmp_path, "loop.cycles=2")
    assert_same_run(tmp_path)


def test_a_served_reward_gives_the_same_run_in_two_processes(url, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(HELPERS / "run_served.py"), url, str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(tmp_path)
