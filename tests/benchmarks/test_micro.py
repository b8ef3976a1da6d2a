"""MicroEval's prompts, verdicts and pictures; and how a run's benchmark is found."""

import subprocess
import sys
from random import Random

import numpy as np
import pytest
import torch

from htgrpo_ext.benchmarks import BENCHMARKS, benchmark_of
from htgrpo_ext.benchmarks.micro import MicroEval
from htgrpo_ext.errors import UserError
from htgrpo_ext.micro.decoder import decode_codes
from htgrpo_ext.micro.world import TASKS, draw_scene, split_prompts

SECTION = {"name": "microeval", "prompts_per_task": 3, "images_per_prompt": 2, "seed": 1000}
MICRO = MicroEval(**SECTION)


def no_pixels():
    raise AssertionError("MicroEval reads codes")


def scenes(prompts, noise: float) -> torch.Tensor:
    return torch.tensor([draw_scene(prompt, Random(7), noise) for prompt in prompts])


def test_prompts_are_held_out_from_training():
    prompts, trained = MICRO.prompts(), [prompt["prompt"] for prompt in split_prompts(3)[0]]
    assert [prompt["tag"] for prompt in prompts] == [task for task in TASKS for _ in range(3)]
    assert not {prompt["prompt"] for prompt in prompts} & set(trained)
    assert list(MICRO.task_names) == list(TASKS)


def test_scenes_drawn_without_a_fault_are_correct_and_others_say_what_is_wrong():
    prompts = MICRO.prompts()
    right, wrong = (MICRO.judge(prompts, scenes(prompts, noise), no_pixels) for noise in (0.0, 1.0))
    assert all(verdict == (True, 1.0, "") for verdict in right)
    assert not any(verdict.correct for verdict in wrong)
    assert all(verdict.partial < 1 and verdict.reason for verdict in wrong)


def test_what_is_kept_of_images_shows_them_again():
    codes_BN = scenes(MICRO.prompts()[:2], 0.0)
    kept = MICRO.keep(codes_BN, no_pixels)
    assert kept.dtype == np.uint16 and kept.tolist() == codes_BN.tolist()
    for picture, pixels in zip(MICRO.show(kept), decode_codes(codes_BN), strict=True):
        expected = ((pixels + 1) * 127.5).round().permute(1, 2, 0)
        assert np.array_equal(np.array(picture), expected.numpy())


def test_a_published_row_has_every_task_and_an_overall_score():
    assert MICRO.published and {len(row) for row in MICRO.published.rows.values()} == {len(TASKS) + 1}


def test_a_task_without_words_of_its_own_is_read_from_its_name():
    assert (MICRO.task_words("two_object"), MICRO.task_words("long_text")) == ("two objects", "long text")


def test_a_runs_benchmark_is_read_from_its_configuration():
    assert benchmark_of({"eval": SECTION}) == MICRO
    assert benchmark_of({"eval": None}) is None and benchmark_of({}) is None


@pytest.mark.parametrize("change", [{"name": "other"}, {"seed": -1}, {"unknown": 1}, {"prompts_per_task": 81}])
def test_a_section_that_is_no_benchmarks_is_refused(change):
    with pytest.raises(UserError, match="`eval` section"):
        benchmark_of({"eval": SECTION | change})


def test_benchmarks_load_no_torch_before_they_are_used():
    program = "import sys, htgrpo_ext.benchmarks; assert not {'torch', 'numpy', 'PIL'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert MicroEval in BENCHMARKS


def test_the_first_prompts_of_each_task_are_painted_while_training_the_tasks_in_turn():
    benchmark = MicroEval(name="microeval", prompts_per_task=5, images_per_prompt=1, seed=0)
    held_out, prompts = benchmark.held_out([]), benchmark.prompts()
    assert benchmark.num_held_out == len(held_out) == 24
    assert [prompt["tag"] for prompt in held_out[:6]] == list(TASKS) and held_out[:6] == prompts[::5]
    few = MicroEval(name="microeval", prompts_per_task=1, images_per_prompt=1, seed=0)
    assert few.held_out([]) == few.prompts()


def test_held_out_prompts_are_no_benchmark():
    section = {"name": "held-out", "every": 2, "num_prompts": 1, "images_per_prompt": 1, "seed": 0, "exclude": "x"}
    assert benchmark_of({"eval": section}) is None
