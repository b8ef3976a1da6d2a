"""The package as `pip install` leaves it: it works in a folder that knows nothing of the repository."""

import os
import shutil
import subprocess
import sys
import zipfile

from helpers.paths import ROOT


def test_an_installed_package_trains_in_an_empty_folder(tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for folder in ("htgrpo_ext", "configs", "assets"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    elsewhere.mkdir()
    sets = (
        "loop.cycles=1 loop.micro_batches=1 rollout.prompts_per_cycle=1 rollout.rollouts_per_prompt=2 rollout.steps=1"
    )
    sets += " eval.prompts_per_task=1 eval.images_per_prompt=1 log.tensorboard=false"
    arguments = [word for one in sets.split() for word in ("--set", one)]
    done = subprocess.run(
        [sys.executable, "-m", "htgrpo_ext.cli", "train", "model/micro", "configs/method/htgrpo.yaml", *arguments],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (elsewhere / "runs/micro-htgrpo-s0/report.html").is_file()
    assert "site/htgrpo_ext/assets/micro-base" in (elsewhere / "runs/micro-htgrpo-s0/config.yaml").read_text()
    assert [path.name for path in elsewhere.iterdir()] == ["runs"]
