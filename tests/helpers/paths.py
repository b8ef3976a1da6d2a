"""Where things are, seen from tests."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TESTS = ROOT / "tests"
HELPERS = TESTS / "helpers"
PYTHONPATH = f"{TESTS}{os.pathsep}{ROOT}"  # of a process of its own
UPSTREAM = ROOT / "upstream"
