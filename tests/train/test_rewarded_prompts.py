"""A prompt that a reward can never score stops a run before its model is loaded."""

import re

import pytest

from helpers.micro_runs import CONFIGS, tiny_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.train.run import prepare_run

BASE = CONFIGS.parent / "assets" / "micro-base"
HERE, SERVED = (
    "{name: ocr, weight: 1.0}",
    "{name: ocr, weight: 1.0, url: 'http://127.0.0.1:9'}",
)  # nobody is asked there


@pytest.mark.parametrize("term", [HERE, SERVED], ids=["in process", "served"])
def test_a_prompt_without_a_text_is_named_before_anything_is_loaded(term, tmp_path, monkeypatch):
    monkeypatch.setattr("htgrpo_ext.train.run.Rewards", None)  # it would load the reader, or ask the server
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    source = f"prompts=[{{format: text, path: '{prompts}'}}]"
    settings = tiny_settings("htgrpo", BASE, tmp_path / "run", f"reward.terms=[{term}]", source)
    says = f"{prompts}:1: reward ocr: prompt `a red circle`: no text to read"
    with pytest.raises(UserError, match=f"^{re.escape(says)}") as raised:
        prepare_run(settings)
    assert "\n" not in str(raised.value)


def test_a_held_out_prompt_without_a_text_is_named_too(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a red circle", "text": "red"}\n')
    more = (f"reward.terms=[{HERE}]", f"prompts=[{{format: text-rendering, path: '{prompts}'}}]", "eval.every=1")
    with pytest.raises(UserError, match=r"^held-out prompts \(eval\): reward ocr: prompt `"):
        prepare_run(tiny_settings("htgrpo", BASE, tmp_path / "run", *more))
