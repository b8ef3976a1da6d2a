"""Held-out prompts of GenEval's kind, as a run draws them: refused or drawn before a model is loaded."""

import json
from pathlib import Path

import pytest

from helpers.micro_runs import CONFIGS, tiny_settings
from htgrpo_ext.benchmarks.held_out import HeldOut
from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.prompts.geneval import contents, held_out_set, metadata, plain, requirement
from htgrpo_ext.train.run import held_out_prompts, prompt_sources
from htgrpo_ext.workflow.train import train

EXCLUDED = [metadata("counting", content) for content in list(contents("counting"))[:200]]


@pytest.fixture
def exclude(tmp_path) -> Path:
    """A file in the place of GenEval's own prompts."""
    path = tmp_path / "benchmark.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in EXCLUDED))
    return path


def test_none_is_the_benchmarks_or_trained_on(exclude, tmp_path):
    would_be = held_out_set(20, 7, EXCLUDED)
    (tmp_path / "words.txt").write_text("\n".join(prompt["prompt"].upper() for prompt in would_be[::2]))
    section = f"eval={{name: held-out, every: 2, num_prompts: 20, images_per_prompt: 1, seed: 7, exclude: '{exclude}'}}"
    sources = f"prompts=[{{format: text, path: '{tmp_path / 'words.txt'}'}}]"
    settings = load_settings([CONFIGS / "model/lumina.yaml", CONFIGS / "method/htgrpo.yaml"], [section, sources])
    encoded = []
    prompts = held_out_prompts(settings, prompt_sources(settings), encoded.extend)
    assert encoded == [prompt["prompt"] for prompt in prompts] and len(set(encoded)) == 20
    assert not {plain(text) for text in encoded} & {plain(prompt["prompt"]) for prompt in would_be[::2]}
    assert not {requirement(prompt) for prompt in prompts} & {requirement(prompt) for prompt in EXCLUDED}
    assert {prompt["prompt"] for prompt in would_be[1::2]} <= set(encoded)


def test_a_missing_file_of_the_benchmarks_prompts_is_said_with_what_gets_it(tmp_path):
    section = HeldOut(name="held-out", every=1, num_prompts=2, images_per_prompt=1, seed=0, exclude=tmp_path / "none")
    with pytest.raises(
        UserError, match="none: no such file; it lists GenEval's prompts.*`make upstream`.*eval.exclude"
    ):
        section.held_out([])


def test_prompts_that_the_model_cannot_read_are_refused_before_it_is_loaded(exclude, checkpoint, tmp_path):
    settings = tiny_settings("htgrpo", checkpoint, tmp_path / "run")
    held_out = HeldOut(name="held-out", every=2, num_prompts=3, images_per_prompt=1, seed=7, exclude=exclude)

    with pytest.raises(UserError, match=r"^held-out prompts: .*\(eval\)$"):
        train(settings.model_copy(update={"eval": held_out}))
    assert not (tmp_path / "run").exists()
