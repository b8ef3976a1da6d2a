"""The line that a person sees while training."""

import pytest

from helpers.paths import CONFIGS
from htgrpo_ext.config import load_settings
from htgrpo_ext.train.progress import TrainingProgress


@pytest.mark.parametrize("width", [80, 200])
def test_the_bar_the_stage_the_reward_and_the_time_left_fit_the_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    settings = load_settings([CONFIGS / "model/micro.yaml", CONFIGS / "method/htgrpo.yaml"])
    progress = TrainingProgress(settings, enabled=True)
    record = {"cycle": 20, "reward_mean": 0.7421, "reward_std": 0.312, "zero_std_groups": 2, "groups": 16}
    progress.cycle(record | {"failed_groups": 0, "seconds": {"update": 1.0}})
    progress.update(6, "refinement")
    with progress.console.capture() as captured:
        progress.console.print(progress.bar.get_renderable())
    (line,) = captured.get().splitlines()
    for part in ("train", "━━━━━━━", "21/40", "refinement 7/8 │ reward 0.742", "--:--"):
        assert part in line.replace("\x1b", ""), line
