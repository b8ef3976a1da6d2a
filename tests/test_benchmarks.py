"""The scripts in benchmarks/: what they measure is configured by settings that still load."""

import importlib.util

import pytest

from helpers.paths import ROOT


@pytest.mark.parametrize("method", ["maskgrpo", "htgrpo"])
def test_settings_of_the_scoring_benchmark_are_valid(method, tmp_path):
    file = ROOT / "benchmarks" / "scoring_cost.py"
    specification = importlib.util.spec_from_file_location("scoring_cost", file)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    settings = module.settings_of(method, tmp_path)
    assert (settings.model.name, settings.method.name) == ("mmada", method)
