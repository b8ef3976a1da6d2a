"""Folders of the project, for tests."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TESTS = ROOT / "tests"
HELPERS = TESTS / "helpers"
PYTHONPATH = f"{TESTS}{os.pathsep}{ROOT}"  # for subprocesses
UPSTREAM = ROOT / "upstream"
