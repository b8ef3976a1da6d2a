"""benchmarks/cycle.py: its arithmetic, and that it runs."""

import json
import subprocess
import sys

import cycle_cases
import cycle_profile
import cycle_report
import cycle_scaling
import measuring
import pytest
import shapes
import torch
from torch import nn
from torch.nn import functional as F

from helpers.paths import ROOT
from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.workflow.plan import plan


def test_exponent_is_the_slope_of_the_logarithms():
    assert cycle_scaling.exponent([1, 3, 9], [5, 45, 405]) == pytest.approx(2)
    # In powers of two (0, 0), (1, 1), (2, 4): deviations -1, 0, 1 and -5/3, -2/3, 7/3, so (5/3 + 7/3) / 2 = 2.
    assert cycle_scaling.exponent([1, 2, 4], [1, 2, 16]) == pytest.approx(2)
    assert cycle_scaling.exponent([1, 2], [8, 4]) == pytest.approx(-1)


def test_points_of_an_axis_differ_in_that_axis_alone():
    for axis, points in cycle_scaling.axes(4).items():
        first = vars(next(iter(points.values()))[0])
        for value, (case, processes) in points.items():
            changed = {key for key, size in vars(case).items() if size != first[key]}
            assert changed <= {{"N": "more", "G": "images", "K": "updates", "T": "steps"}.get(axis)}
            assert processes == (value if axis == "processes" else 1)


def test_flops_are_those_of_a_hand_count():
    layer, x = nn.Linear(5, 7, bias=False), torch.randn(3, 5, requires_grad=True)
    with cycle_profile.flop_counter() as counter:
        y = layer(x)
        assert counter.get_total_flops() == 2 * 3 * 5 * 7
        y.sum().backward()  # the gradients of x and of the weights
        assert counter.get_total_flops() == 3 * 2 * 3 * 5 * 7
    q = torch.randn(1, 2, 8, 16)
    with cycle_profile.flop_counter() as counter:
        F.scaled_dot_product_attention(q, q, q)  # two products of [8, 16] and [16, 8], or [8, 8] and [8, 16], per head
    assert counter.get_total_flops() == 2 * (2 * 2 * 8 * 8 * 16)


def test_flops_of_a_row_are_those_that_plan_has(tmp_path):
    checkpoint = shapes.tiny_checkpoint("mmada", tmp_path / "mmada", width=16, layers=2)
    changes = [*shapes.real_shape("mmada", checkpoint), "model.prompt_length=12"]
    settings = shapes.settings_of("mmada", "htgrpo", changes)
    backbone = load_backbone(settings.model, "cpu", 0)
    everywhere_1N = torch.ones(1, backbone.num_image_tokens, dtype=torch.bool)
    codes_1N = torch.zeros_like(everywhere_1N, dtype=torch.int64)
    with torch.no_grad(), cycle_profile.flop_counter() as counter:
        backbone.image_logits(backbone.encode_prompts(["a red dog"]), codes_1N, everywhere_1N)
    assert counter.get_total_flops() == settings.model.sizes().row_flops()


def test_shares_of_a_part_add_up_to_its_time():
    shares = cycle_profile.shares({"attention": 1.0, "matrix products": 2.0}, seconds=4.0)
    assert shares == {
        "matrix products": 0.5,
        "attention": 0.25,
        "probabilities": 0,
        "other operators": 0,
        "outside": 0.25,
    }
    kinds = [cycle_profile.kind_of(f"aten::{name}") for name in ("addmm", "_log_softmax", "add")]
    assert kinds == ["matrix products", "probabilities", "other operators"]


def test_a_part_inside_another_counts_for_itself():
    clock = iter([0, 1, 3, 6, 10, 15])
    parts = measuring.Parts(lambda: next(clock), rest="update")
    with parts.part("rollout"), parts.part("reward"):
        pass
    parts.enter("done")
    # update 0 to 1, rollout 1 to 3, reward 3 to 6, rollout again to 10, update again to 15
    assert parts.taken == {"update": 6, "rollout": 6, "reward": 3}


def cycle_of(seconds: float, peak: int = 1) -> dict:
    taken = {"rollout": seconds / 2, "score": seconds / 8, "reward": 0.0, "update": seconds * 3 / 8, "cycle": seconds}
    peaks = {"rollout": 3 * peak, "score and update": peak}
    return {"seconds": taken, "peaks": peaks, "rows": {"rollout": 1, "scored": 1, "trained": 1}}


def test_ratios_are_medians_of_pairs():
    runs = {"htgrpo": [cycle_of(1), cycle_of(2), cycle_of(10)], "published": [cycle_of(4), cycle_of(6), cycle_of(20)]}
    table = cycle_cases.compared(runs)["published"]
    assert table["seconds"]["cycle"] == 6
    assert table["ratios"]["cycle"] == 3  # of 4, 3 and 2; the ratio of the medians is 3 too
    runs["htgrpo"][2] = cycle_of(2)
    assert cycle_cases.compared(runs)["published"]["ratios"]["cycle"] == 4  # of 4, 3 and 10


def test_targets_say_what_was_met():
    runs = {"htgrpo": [cycle_of(1, peak=10)], "published": [cycle_of(20, peak=70)]}
    found = cycle_report.targets({"mmada": {"table": cycle_cases.compared(runs)}})
    assert [(target["measured"], target["met"]) for target in found] == [(20, True), (7, False), (20, True)]
    runs["htgrpo-reuse"] = [cycle_of(8)]
    found = cycle_report.targets({"mmada": {"table": cycle_cases.compared(runs)}})
    assert (found[-1]["measured"], found[-1]["met"]) == (2.5, False)


def test_missing_upstream_is_said_and_our_method_takes_its_place():
    rows, left_out = cycle_cases.rows_of(cycle_cases.CASES["mmada"], "upstream/ is empty")
    assert set(rows) == set(cycle_cases.ROWS) - {"htgrpo-theirs", "published"}
    assert all("upstream/ is empty" in line for line in left_out) and len(left_out) == 2
    rows, left_out = cycle_cases.rows_of(cycle_cases.CASES["mmada"], None)
    assert "published" in rows and "maskgrpo" not in rows and not left_out


def test_a_worker_that_fails_says_why(tmp_path):
    row, case = cycle_cases.Row("Nobody's", "nobody", "ours"), cycle_cases.CASES["micro"]
    worker = cycle_cases.Worker(row, case, [], tmp_path / "worker", threads=1)
    with pytest.raises(RuntimeError, match="(?s)Nobody's.*nobody"):
        worker.answer()
    worker.end()


def test_smallest_cycle_gives_json_with_the_rows_of_plan(tmp_path):
    out, plot = tmp_path / "cycle.json", tmp_path / "cycle.png"
    sizes = ["--prompts", "2", "--images", "2", "--steps", "2", "--updates", "2"]
    script = [sys.executable, ROOT / "benchmarks" / "cycle.py", "--case", "micro", "--row", "tracegrpo"]
    command = [*script, *sizes, "--repeats", "2", "--threads", "1", "--out", out, "--plot", plot]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    micro = json.loads(out.read_text())["cases"]["micro"]
    changes = ["rollout.prompts_per_cycle=2", "rollout.rollouts_per_prompt=2", "rollout.steps=2"]
    rows = plan(shapes.settings_of("micro", "htgrpo", changes, updates=2)).rows
    expected = {"rollout": rows["rollout"], "scored": rows["old"] + rows["reference"], "trained": rows["new"]}
    assert micro["runs"]["htgrpo"][0]["rows"] == expected
    assert set(micro["table"]) == {"htgrpo", "tracegrpo"}
    assert len(micro["runs"]["tracegrpo"]) == 2 and micro["table"]["tracegrpo"]["seconds"]["cycle"] > 0
    assert micro["profile"]["flops"]["rollout"] > micro["profile"]["flops"]["score"] > 0
    assert "TraceGRPO" in done.stdout and "targets" in done.stdout
    assert plot.stat().st_size > 1000


def test_plot_of_growth_is_drawn(tmp_path):
    values, amounts = [1, 2, 4], {"rollout": [1.0, 2.0, 4.0], "score and update": [1.0, 1.0, 1.0], "peak": [4, 8, 16]}
    exponents = {"htgrpo": {key: cycle_scaling.exponent(values, amount) for key, amount in amounts.items()}}
    axis = {"values": values, "methods": {"htgrpo": amounts}, "exponents": exponents}
    found = {"axes": {"G": axis}, "images": {"values": values, "peak": [10.0, 10.0, 11.0]}}
    cycle_report.plot_scaling(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000
