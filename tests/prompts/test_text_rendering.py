"""Text-rendering prompts: texts in their prompts, words held out, the command's file, and the source of a run."""

import json
import re

import pytest

from helpers.command import run
from helpers.micro_runs import CONFIGS
from htgrpo_ext.benchmarks import HeldOutTexts
from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.prompts import text_rendering
from htgrpo_ext.prompts.sources import PromptSources
from htgrpo_ext.rewards.texts import wanted_text


def words(prompts) -> set[str]:
    return {word for prompt in prompts for word in prompt["text"].lower().split()}


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_prompts_differ_and_say_their_text_once_in_quotes(split):
    prompts = text_rendering.text_prompts(3000, 7, split)
    assert len({prompt["prompt"] for prompt in prompts}) == 3000
    for prompt in prompts:
        assert re.findall('"(.*?)"', prompt["prompt"]) == [prompt["text"]]
        assert wanted_text({"prompt": prompt["prompt"]}) == prompt["text"]
        assert len(set(prompt["text"].split())) == text_rendering.TASKS[prompt["tag"]]
    assert [prompt["tag"] for prompt in prompts[:4]] == ["one_word", "two_words"] * 2


def test_no_word_is_trained_on_and_held_out_in_any_seed():
    trained = words(p for seed in range(3) for p in text_rendering.text_prompts(3000, seed, "train"))
    held_out = words(p for seed in range(3) for p in text_rendering.text_prompts(3000, seed, "held-out"))
    assert not trained & held_out
    assert trained | held_out == set(text_rendering.WORDS) and len(held_out) == len(text_rendering.WORDS) // 4


def test_every_prompt_there_is_comes_once_and_more_are_refused():
    """One word: 37 words, 3 cases, 20 scenes. Two: 37 x 36 pairs. The page of the module says the same."""
    one, two = 37 * 3 * 20, 37 * 36 * 3 * 20
    prompts = text_rendering.text_prompts(one + two, 0, "held-out")
    assert len({prompt["prompt"] for prompt in prompts}) == one + two
    assert f"{one:,}" in text_rendering.__doc__ and f"{two:,}" in text_rendering.__doc__
    with pytest.raises(UserError, match=r"^82,141 prompts: there are only 82,140 that differ \(--n\)$"):
        text_rendering.text_prompts(one + two + 1, 0, "held-out")


def test_the_seed_chooses_the_order():
    first, again, other = (text_rendering.text_prompts(50, seed, "train") for seed in (1, 1, 2))
    assert first == again != other


def test_held_out_texts_leave_out_those_that_are_trained_on():
    section = HeldOutTexts(name="held-out-texts", every=1, num_prompts=20, images_per_prompt=1, seed=3)
    chosen = section.held_out([])
    assert len(chosen) == section.num_held_out == 20
    trained = [{"prompt": f'a wall "{chosen[0]["text"].upper()}"'}, {"prompt": "a wall"}]
    left = section.held_out(trained)
    kept = [prompt for prompt in chosen if prompt["text"].lower() != chosen[0]["text"].lower()]
    assert len(left) == 20 and left[: len(kept)] == kept
    assert chosen[0]["text"].lower() not in {prompt["text"].lower() for prompt in left}


def test_the_command_writes_lines_that_a_run_trains_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "new/texts.jsonl"
    assert run(monkeypatch, "prompts", "text-rendering", "--n", "40", "--seed", "5", "--out", str(out)) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 40 prompts, ")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines == text_rendering.text_prompts(40, 5, "train")
    given = sources(f"[{{format: text-rendering, path: '{out}'}}]")
    assert sorted(p["prompt"] for c in range(10) for p in given.cycle(c)) == sorted(p["prompt"] for p in lines)
    assert given.cycle(0)[0] in lines
    assert run(monkeypatch, "prompts", "text-rendering", "--n", "9", "--out", str(out)) == 2
    assert capsys.readouterr().err == f"error: {out}: is there already (--out)\n"
    assert len(out.read_text().splitlines()) == 40


def sources(text: str) -> PromptSources:
    settings = load_settings([CONFIGS / "model/mmada.yaml", CONFIGS / "method/htgrpo.yaml"], [f"prompts={text}"])
    return PromptSources(settings.prompts, settings.seed, 4, settings.held_out)


def test_a_run_without_a_file_trains_on_our_own():
    given = sources("[{format: text-rendering}]")
    prompts = [prompt for cycle in range(50) for prompt in given.cycle(cycle)]
    assert len({prompt["prompt"] for prompt in prompts}) == 200
    assert not words(prompts) & words(text_rendering.text_prompts(3000, 0, "held-out"))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a wall"}', ":2: prompt `a wall`: no text to read"),
        ('{"prompt": "a wall", "text": ""}', ":2: prompt `a wall`: its `text` is ''"),
        ('{"text": "OPEN"}', ":2: no key `prompt`"),
        ("a wall", ":2: not a JSON object"),
    ],
)
def test_a_line_without_a_text_is_named(tmp_path, line, says):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a sign \\"OPEN\\""}\n' + line + "\n")
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / 'a.jsonl') + says)}"):
        sources(f"[{{format: text-rendering, path: '{tmp_path}/a.jsonl'}}]")


@pytest.mark.parametrize("model", ["mmada", "lumina"])
def test_the_reward_file_makes_a_run_of_either_model(model):
    files = [CONFIGS / f"model/{model}.yaml", CONFIGS / "reward/ocr.yaml", CONFIGS / "method/htgrpo.yaml"]
    settings = load_settings(files, [])
    assert [term.name for term in settings.reward.terms] == ["ocr"] and settings.problems(8) == []
    assert settings.prompts[0].format == "text-rendering" and isinstance(settings.eval, HeldOutTexts)
    assert len(settings.eval.held_out([])) == 48
