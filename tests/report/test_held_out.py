"""What summary and page say of the evaluations while training, and of what a run lost; from made-up runs."""

import json
import math
import re

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.fabricated import fabricate, settings_of
from htgrpo_ext.report.figures import spread
from htgrpo_ext.report.folder import read_pictures
from htgrpo_ext.report.page import write_report
from htgrpo_ext.report.summary import held_out_line, write_summary

HELD_OUT = {"name": "held-out", "every": 2, "num_prompts": 2, "images_per_prompt": 2, "seed": 0, "exclude": "none"}
REWARDS = {0: [[0.1, 0.3], [0.2, 0.2]], 2: [[0.9, 0.7], [0.8, 0.8]], 3: [[0.6, 0.4], [0.5, None]]}


def evaluation(cycles_done: int, rewards: list) -> dict:
    kept = [reward for row in rewards for reward in row if reward is not None]
    mean = sum(kept) / len(kept) if kept else None
    numbers = {"reward_mean": mean, "reward_std": 0.1, "clip_mean": mean and mean / 2, "clip_std": 0.1}
    lost = sum(reward is None for row in rewards for reward in row)
    return {"kind": "eval", "cycles_done": cycles_done, **numbers} | {
        "images": 4,
        "lost_images": lost,
        "rewards": rewards,
        "seconds": 1.5,
    }


def made_up(folder, rewards=REWARDS, change=lambda lines: lines):
    """A run without a benchmark and with evaluations while training; its summary and page."""
    settings = settings_of(folder, eval=HELD_OUT)
    fabricate(folder, settings_of(folder, eval=None))
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("eval: null", f"eval: {HELD_OUT}"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = change(lines) + [evaluation(cycle, each) for cycle, each in rewards.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "best").mkdir()
    (folder / "best/best.json").write_text(json.dumps({"cycles_done": 2, "reward_mean": 0.8}))
    summary = write_summary(folder, settings, 0, {"evaluation": 1.0})
    return summary, write_report(folder).read_text()


def save_row(folder, cycle: int, colors: list[str]) -> None:
    row, about = Image.new("RGB", (300 * len(colors), 200)), PngInfo()
    for i, color in enumerate(colors):
        row.paste(Image.new("RGB", (300, 200), color), (300 * i, 0))
        about.add_itxt(f"prompt {i + 1}", f"all {color} & <b>")
    folder.mkdir(parents=True, exist_ok=True)
    row.save(folder / f"cycle-{cycle:06d}.png", pnginfo=about)


def test_the_headline_is_the_held_out_reward_with_its_paired_interval(tmp_path):
    summary, page = made_up(tmp_path / "run")
    held_out = summary["held_out"]
    # Cycle 3 lost an image of the second prompt, so only the first is paired: 0.5 - 0.2.
    assert held_out["gain"] == pytest.approx(0.3) and held_out["gain_interval"] == pytest.approx([0.3, 0.3])
    assert (held_out["before"], held_out["after"]) == (pytest.approx(0.2), pytest.approx(0.5))
    assert (held_out["prompts"], held_out["images"], held_out["evaluations"]) == (2, 4, 3)
    assert summary["seconds"]["evaluation"] == 1.0 + 3 * 1.5
    words = " ".join(re.sub("<[^>]*>", "", page).split())
    assert "0.20 → 0.50" in words and "+0.30 [+0.30, +0.30]" in words
    assert "0.800 after cycle 2, is in best/" in words and "Scores" not in words
    line = f"held-out reward  0.200 → 0.500  best 0.800 after cycle 2, kept in {tmp_path / 'run' / 'best'}"
    assert held_out_line(held_out, tmp_path / "run") == line


def test_curve_and_pictures_are_on_the_page(tmp_path):
    folder = tmp_path / "run"
    for cycle in (0, 2, 3):
        save_row(folder / "eval/pictures", cycle, ["red", "blue"])
        save_row(folder / "pictures", cycle + 1, ["green"])
    _, page = made_up(folder)
    assert '<img alt="Held-out reward"' in page and '<img alt="Held-out verdict"' not in page
    assert [page.count(f'alt="cycle {n}: all red &amp; &lt;b&gt;"') for n in (0, 1, 2, 3)] == [1, 0, 1, 1]
    assert page.count("all red") == 3 + 1 and page.count("all green") == 3 * 2
    (row, *_) = read_pictures(folder / "eval/pictures")
    assert row.prompts == ["all red & <b>", "all blue & <b>"]
    assert [picture.getpixel((150, 100)) for picture in row.pictures] == [(255, 0, 0), (0, 0, 255)]


def test_at_most_so_many_rows_are_shown_with_first_and_last():
    assert spread(list(range(41)), 5) == [0, 10, 20, 30, 40]
    assert spread([1, 2], 5) == [1, 2] and spread([], 3) == []


def test_a_run_whose_evaluations_were_all_lost_is_reported(tmp_path):
    nothing = [[None, None], [None, None]]
    summary, page = made_up(tmp_path / "run", {0: nothing, 3: nothing})
    assert summary["held_out"]["before"] is summary["held_out"]["gain"] is None
    assert "8 of 8 held-out images were not scored" in page and "→" not in page


def test_nothing_lost_is_no_warning(tmp_path):
    summary, page = made_up(tmp_path / "run", {0: REWARDS[0], 2: REWARDS[2]})
    assert summary["warnings"] == [] and 'class="warning"' not in page


def test_what_was_lost_is_counted_in_a_warning(tmp_path):
    def change(lines):
        updates = [line for line in lines if line["kind"] == "update"]
        cycles = [line for line in lines if line["kind"] == "cycle"]
        updates[3] |= {"skipped": True, "loss": None}
        cycles[0] |= {"failed_groups": 1}
        cycles[1] |= {"failed_groups": 12, "reward_mean": None, "verdict_mean": None, "partial_mean": None}
        return lines

    summary, page = made_up(tmp_path / "run", change=change)
    assert summary["warnings"] == [
        "13 of 36 groups were not trained on, because a reward failed to score them",
        "1 of 3 cycles had no reward at all, and trained nothing",
        "1 of 24 updates were skipped, because the loss or the gradient was not a finite number",
        "1 of 12 held-out images were not scored, because a reward failed",
    ]
    assert page.count('class="warning"') == 4 and all(warning in page for warning in summary["warnings"])


@pytest.mark.parametrize(("lost", "warned"), [(1, False), (2, True)])
def test_a_few_lost_groups_are_no_warning(lost, warned, tmp_path):
    """Of 36 groups one is 3 %, two are 6 %."""

    def change(lines):
        lines[-1] |= {"failed_groups": lost}
        return lines

    summary, _ = made_up(tmp_path / "run", {0: REWARDS[0]}, change)
    assert bool(summary["warnings"]) == warned
    assert math.isclose(summary["held_out"]["gain"], 0.0)
