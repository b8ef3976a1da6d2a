"""docs/extend.md: each example, a file or folder and one registry line, makes a run; so do all four together."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.micro_runs import records, tiny_checkpoint
from helpers.paths import CONFIGS, ROOT

REGISTRIES = {  # room: file and beginning of the registry, its new entry, and the module to import that from
    "methods": ("methods/__init__.py", "METHODS: tuple[type[Method], ...] = (", "Half", "methods.half"),
    "backbones": ("backbones/__init__.py", "BACKBONES: tuple[type[ModelSection], ...] = (", "Dots", "backbones.dots"),
    "rewards": ("rewards/registry.py", "REWARDS = {", '"brightness": Reward("brightness", in_process=True)', None),
    "benchmarks": (
        "benchmarks/__init__.py",
        "BENCHMARKS: tuple[type[Benchmark], ...] = (",
        "Bright",
        "benchmarks.bright",
    ),
}
SMALL = ["loop.cycles=2", "rollout.prompts_per_cycle=4", "rollout.rollouts_per_prompt=4", "rollout.steps=3", "out=run"]
# What a run takes from the page's example.yaml; the rest is the micro model's. Its own rewards and benchmark read codes
# of the micro world, so another backbone comes with another reward; the benchmark's words are those of that backbone.
RUNS = {
    "methods": ["method"],
    "backbones": ["model", "reward", "prompts"],
    "rewards": ["reward"],
    "benchmarks": ["model", "reward", "prompts", "eval"],
    "all": ["model", "method", "prompts", "reward", "eval"],
}


def examples() -> dict[str, str]:
    """File name: text, of every example on the page."""
    page = (ROOT / "docs/extend.md").read_text()
    return dict(re.findall(r"^`([\w./]+)`[^\n]*\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


def add(package: Path, room: str) -> None:
    """Put a room's example into a copy of the package: its files, and its entry in the registry."""
    for name, text in examples().items():
        if name.startswith(f"htgrpo_ext/{room}/"):
            assert not (package / name).exists()
            (package / name).parent.mkdir(exist_ok=True)
            (package / name).write_text(text)
    file, begin, entry, module = REGISTRIES[room]
    registry = package / "htgrpo_ext" / file
    text = registry.read_text()
    assert text.count(begin) == 1
    line = f"from htgrpo_ext.{module} import {entry}\n" if module else ""
    registry.write_text(text.replace(begin, f"{line}{begin}{entry}, "))


@pytest.mark.parametrize("what", RUNS)
def test_an_example_and_its_registry_line_plan_train_and_are_reported(what, tmp_path):
    shutil.copytree(ROOT / "htgrpo_ext", tmp_path / "htgrpo_ext", ignore=shutil.ignore_patterns("__pycache__"))
    taken, small = RUNS[what], list(SMALL)
    for room, section in zip(REGISTRIES, ("method", "model", "reward", "eval"), strict=True):
        if section in taken:
            add(tmp_path, room)
    (tmp_path / "words.txt").write_text("a bright picture\na dark picture\n")
    example = {key: section for key, section in yaml.safe_load(examples()["example.yaml"]).items() if key in taken}
    (tmp_path / "example.yaml").write_text(yaml.safe_dump(example))
    files = [CONFIGS / "model/micro.yaml", *([] if "method" in taken else [CONFIGS / "method/htgrpo.yaml"])]
    if "model" not in taken:
        small.append(f"model.checkpoint={tiny_checkpoint(tmp_path / 'tiny')}")
    if "eval" not in taken:
        small.append("eval=null")

    def htgrpo(command: str) -> str:
        sets = [part for value in small for part in ("--set", value)]
        done = subprocess.run(
            [sys.executable, "-m", "htgrpo_ext.cli", command, *map(str, files), "example.yaml", *sets],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    name = f"{'dots' if 'model' in taken else 'micro'}-{'half' if 'method' in taken else 'htgrpo'}-s0"
    assert name in htgrpo("plan")
    htgrpo("train")
    page, cycles = (tmp_path / "run/report.html").read_text(), records(tmp_path / "run", "cycle")
    assert name in page and len(cycles) == 2
    if "method" in taken:  # half of the tokens, in every update
        tokens = 16 if "model" in taken else 64
        assert {update["support"] for update in records(tmp_path / "run", "update")} == {tokens / 2}
    if "model" in taken:
        assert (tmp_path / "run/model/model.safetensors").is_file()
    if "reward" in taken:
        assert all(cycle["brightness_mean"] > 0 for cycle in cycles)
    assert ("bright pictures" in page) == ("eval" in taken)
