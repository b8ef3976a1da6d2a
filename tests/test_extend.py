"""docs/extend.md: its four examples, each a file or folder and one registry line, make a run."""

import json
import os
import re
import shutil
import subprocess
import sys

from helpers.paths import CONFIGS, ROOT

REGISTRIES = {  # file: the registry's beginning, its new entry, and the module to import that from
    "methods/__init__.py": ("METHODS: tuple[type[Method], ...] = (", "Half", "methods.half"),
    "backbones/__init__.py": ("BACKBONES: tuple[type[ModelSection], ...] = (", "Dots", "backbones.dots"),
    "rewards/registry.py": ("REWARDS = {", '"brightness": Reward("brightness", in_process=True)', None),
    "benchmarks/__init__.py": ("BENCHMARKS: tuple[type[Benchmark], ...] = (", "Bright", "benchmarks.bright"),
}
SMALL = ["loop.cycles=2", "rollout.prompts_per_cycle=4", "rollout.rollouts_per_prompt=4", "out=run"]


def examples() -> dict[str, str]:
    """File name: text, of every example on the page."""
    page = (ROOT / "docs/extend.md").read_text()
    return dict(re.findall(r"^`([\w./]+)`[^\n]*\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))


def test_made_up_method_backbone_reward_and_benchmark_train_and_are_reported(tmp_path):
    shutil.copytree(ROOT / "htgrpo_ext", tmp_path / "htgrpo_ext", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in examples().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, (registry, entry, module) in REGISTRIES.items():
        text = (tmp_path / "htgrpo_ext" / name).read_text()
        assert registry in text
        line = f"from htgrpo_ext.{module} import {entry}\n" if module else ""
        (tmp_path / "htgrpo_ext" / name).write_text(text.replace(registry, f"{line}{registry}{entry}, "))
    (tmp_path / "words.txt").write_text("a bright picture\na dark picture\n")

    def htgrpo(command: str) -> str:
        files = [str(CONFIGS / "model/micro.yaml"), "example.yaml"]
        sets = [part for value in SMALL for part in ("--set", value)]
        done = subprocess.run(
            [sys.executable, "-m", "htgrpo_ext.cli", command, *files, *sets],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "dots-half-s0" in htgrpo("plan")
    assert "Bright" in htgrpo("train")
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["brightness_mean"] > 0 for record in records if record["kind"] == "cycle"] == [True, True]
    assert "bright pictures" in (tmp_path / "run/report.html").read_text()
