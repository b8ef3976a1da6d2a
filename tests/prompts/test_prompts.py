"""Prompt sources: order, shares, epochs, files that cannot be read."""

import json
from collections import Counter

import pytest
import torch

from helpers.micro_runs import CONFIGS
from htgrpo_ext.config import load_settings
from htgrpo_ext.core.randomness import derived_generator
from htgrpo_ext.errors import UserError
from htgrpo_ext.micro import world
from htgrpo_ext.prompts.settings import PromptSource
from htgrpo_ext.prompts.sources import PromptSources
from htgrpo_ext.words import world as words_world


def sources(*more: str) -> PromptSources:
    files = [CONFIGS / "model/micro.yaml", CONFIGS / "method/htgrpo.yaml"]
    settings = load_settings(files, more)
    return PromptSources(settings.prompts, settings.seed, 4, settings.held_out)


def text_file(folder, name, count):
    (folder / name).write_text("\n".join(f"{name} {i}" for i in range(count)) + "\n\n")
    return folder / name


def words(found, cycles):
    return [prompt["prompt"] for cycle in cycles for prompt in found.cycle(cycle)]


def test_the_micro_world_gives_tasks_in_turn_and_reproducible_prompts():
    found = sources("seed=3")
    prompts = [found.cycle(cycle) for cycle in range(3)]
    assert [p["tag"] for cycle in prompts for p in cycle] == [world.TASKS[i % 6] for i in range(12)]
    noise = torch.rand(4, generator=derived_generator(3, "prompts", 1)).tolist()
    pool = [p for p in world.split_prompts(40)[0] if p["tag"] == "color_attr"]
    assert prompts[1][1] == pool[int(noise[1] * len(pool))]


def test_the_words_world_gives_lengths_in_turn_and_none_of_the_held_out_words():
    found = PromptSources([PromptSource(format="words")], seed=3, per_cycle=4, held_out=40)
    prompts = [prompt for cycle in range(30) for prompt in found.cycle(cycle)]
    assert [len(p["text"]) for p in prompts[:6]] == [3, 4, 5, 3, 4, 5]
    assert not {p["text"] for p in prompts} & {p["text"] for p in words_world.split_prompts(60)[1]}
    assert len({p["text"] for p in prompts}) > 60


def test_a_file_gives_each_prompt_once_before_any_twice_in_a_new_order_each_time(tmp_path):
    setting = f"prompts=[{{format: text, path: {text_file(tmp_path, 'a', 10)}}}]"
    given = words(sources(setting), range(10))
    rounds = [given[i : i + 10] for i in range(0, 40, 10)]
    assert all(set(r) == {f"a {i}" for i in range(10)} for r in rounds)
    assert len({tuple(r) for r in rounds}) == 4
    assert words(sources(setting, "seed=1"), range(10)) != given


def test_weights_are_shares_in_every_cycle_and_cycles_are_independent(tmp_path):
    a, b = text_file(tmp_path, "a", 7), text_file(tmp_path, "b", 5)
    setting = f"prompts=[{{format: text, path: {a}, weight: 3}}, {{format: text, path: {b}}}]"
    found = sources(setting)
    assert all(Counter(w[0] for w in words(found, [cycle])) == {"a": 3, "b": 1} for cycle in range(8))
    assert words(sources(setting), [5, 2]) == words(found, [5, 2])


def test_geneval_metadata_is_kept(tmp_path):
    line = {"tag": "counting", "include": [{"class": "cow", "count": 2}], "prompt": "a photo of two cows", "x": [1]}
    (tmp_path / "set.jsonl").write_text(json.dumps(line))
    assert sources(f"prompts=[{{format: geneval, path: {tmp_path / 'set.jsonl'}}}]").cycle(0) == [line] * 4


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_dataset_is_read_from_its_column(suffix, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "saved"
    folder.mkdir()
    for part in range(2):
        table = pyarrow.table({"caption": [f"{part} {i}" for i in range(2)], "id": [0, 1]})
        path = folder / f"data-{part}.{suffix}"
        if suffix == "parquet":
            parquet.write_table(table, path)
        else:
            with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
                stream.write_table(table)
    setting = f"prompts=[{{format: dataset, path: {folder}, column: caption}}]"
    assert set(words(sources(setting), [0])) == {"0 0", "0 1", "1 0", "1 1"}
    with pytest.raises(UserError, match="no column `prompt` .it has caption, id; prompts.column.$"):
        sources(f"prompts=[{{format: dataset, path: {folder}}}]")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"prompt": "a cow"}', "set.jsonl:1: not GenEval metadata (a JSON object with tag, include and prompt)"),
        ("\n\nnonsense", "set.jsonl:3: not GenEval metadata (a JSON object with tag, include and prompt)"),
        ("\n", "set.jsonl: holds no prompt"),
        (None, "set.jsonl: no such file (prompts.path)"),
    ],
)
def test_a_file_that_is_no_prompt_set_is_refused_in_one_line(text, line, tmp_path):
    path = tmp_path / "set.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        sources(f"prompts=[{{format: geneval, path: {path}}}]")
    assert str(caught.value) == f"{tmp_path}/{line}"
