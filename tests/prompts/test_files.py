"""Prompt files: how lines are cut, which files of a folder are read, and the line that a message names."""

import json

import pytest

from helpers.micro_runs import CONFIGS, tiny_checkpoint, tiny_settings
from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.prompts.files import read_prompts
from htgrpo_ext.prompts.settings import PromptSource
from htgrpo_ext.train.folder import refuse_other_settings
from htgrpo_ext.train.native import start


def texts_in(path, **fields):
    return [line.prompt["prompt"] for line in read_prompts(PromptSource(path=path, **fields))]


def geneval(**changes) -> str:
    entry = {"class": "cow", "count": 2}
    return json.dumps({"tag": "counting", "include": [entry], "prompt": "a photo of two cows"} | changes)


def test_only_a_line_feed_ends_a_line_and_a_byte_order_mark_is_no_text(tmp_path):
    odd = "a\u2028b\u0085c\fd\ve"
    (tmp_path / "a.txt").write_bytes(f"\ufefffirst\r\n\n{odd}\nlast".encode())
    assert texts_in(tmp_path / "a.txt", format="text") == ["first", odd, "last"]
    lines = "\ufeff" + "\n".join(json.dumps({"prompt": text}, ensure_ascii=False) for text in ("one", odd))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    assert texts_in(tmp_path / "a.jsonl", format="jsonl") == ["one", odd]
    (tmp_path / "g.jsonl").write_text("\ufeff" + geneval(prompt=odd) + "\n", encoding="utf-8")
    assert texts_in(tmp_path / "g.jsonl", format="geneval") == [odd]


def test_json_lines_are_read_by_their_key(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "caption": "a cow"}\n{"caption": "a cat"}\n')
    assert texts_in(tmp_path / "a.jsonl", format="jsonl", column="caption") == ["a cow", "a cat"]
    assert read_prompts(PromptSource(format="jsonl", column="caption", path=tmp_path / "a.jsonl"))[0].prompt == {
        "prompt": "a cow"
    }


ENTRY = {"class": "cow", "count": 2}
BAD_LINES = {
    ("jsonl", "nonsense"): "not a JSON object",
    ("jsonl", "[1]"): "not a JSON object",
    ("jsonl", "[" * 10_000): "not a JSON object",
    ("jsonl", '{"text": "a"}'): "no key `prompt` (it has text; prompts.column)",
    ("jsonl", '{"prompt": null}'): "`prompt` is null, not text",
    ("jsonl", '{"prompt": 5}'): "`prompt` is a int, not text",
    ("jsonl", '{"prompt": " "}'): "`prompt` is empty",
    ("geneval", '{"prompt": "a cow"}'): "not GenEval metadata (a JSON object with tag, include and prompt)",
    ("geneval", geneval(prompt="")): "not GenEval metadata (`prompt` is not text, or is empty)",
    ("geneval", geneval(tag=None)): "not GenEval metadata (`tag` is not text, or is empty)",
    ("geneval", geneval(include=[])): "not GenEval metadata (`include` is empty)",
    ("geneval", geneval(include={"class": "cow"})): "not GenEval metadata (`include` is not a list of objects)",
    ("geneval", geneval(include=[ENTRY | {"class": None}])): "not GenEval metadata (a class of `include` is null)",
    ("geneval", geneval(include=[ENTRY | {"count": None}])): "not GenEval metadata (a count of `include` is null)",
    ("geneval", geneval(include=[ENTRY | {"count": -1}])): "not GenEval metadata (a count of `include` is -1)",
    ("geneval", geneval(include=[ENTRY | {"count": True}])): "not GenEval metadata (a count of `include` is true)",
    ("geneval", geneval(include=[ENTRY | {"color": 3}])): "not GenEval metadata (a color of `include` is 3)",
    ("geneval", geneval(include=[ENTRY | {"position": ["above", 1]}])): 'a position of `include` is ["above", 1])',
    ("geneval", geneval(exclude=[{"class": "cow"}])): "not GenEval metadata (a count of `exclude` is null)",
}


@pytest.mark.parametrize(("given", "message"), BAD_LINES.items(), ids=[str(i) for i in range(len(BAD_LINES))])
def test_a_bad_line_is_refused_by_file_and_number(tmp_path, given, message):
    format, line = given
    good = geneval() if format == "geneval" else '{"prompt": "a"}'
    (tmp_path / "set").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(UserError) as caught:
        texts_in(tmp_path / "set", format=format)
    assert str(caught.value).startswith(f"{tmp_path}/set:3: ") and message in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "latin").write_bytes("größer".encode("latin-1"))
    for name, message in (("latin", "not UTF-8 text"), ("", "Is a directory"), ("nothing", "no such file")):
        with pytest.raises(UserError, match=message):
            texts_in(tmp_path / name, format="text")


# --- datasets -------------------------------------------------------------------------------------------------


@pytest.fixture
def parquet():
    """Writes a file of texts."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(path, *texts):
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table({"prompt": list(texts)}), path)

    return write


def test_hidden_folders_and_files_are_not_read(tmp_path, parquet):
    parquet(tmp_path / "data" / "b.parquet", "b")
    parquet(tmp_path / "a.parquet", "a")
    for name in (".cache/x.parquet", "data/.ipynb_checkpoints/b.parquet", ".a.parquet", "cache-12.arrow"):
        parquet(tmp_path / name, "never")
    assert texts_in(tmp_path, format="dataset") == ["a", "b"]


@pytest.mark.parametrize(
    "names",
    [("train-0.parquet", "test-0.parquet"), ("train/0.parquet", "eval/0.parquet"), ("train.parquet", "x.parquet")],
)
def test_several_splits_are_asked_about_and_one_can_be_chosen(tmp_path, parquet, names):
    for name in names:
        parquet(tmp_path / "data" / name, name)
    with pytest.raises(UserError, match=r"several splits, .*train \(1 files, .*choose one \(prompts.split, or the"):
        texts_in(tmp_path, format="dataset")
    assert texts_in(tmp_path, format="dataset", split="train") == [names[0]]
    assert texts_in(tmp_path / "data" / names[1], format="dataset") == [names[1]]
    with pytest.raises(UserError, match="no split `validation`"):
        texts_in(tmp_path, format="dataset", split="validation")


def test_a_row_that_is_no_prompt_is_refused_by_its_number(tmp_path, parquet):
    parquet(tmp_path / "a.parquet", "a", None)
    with pytest.raises(UserError, match=r"a.parquet, row 2: `prompt` is null, not text"):
        texts_in(tmp_path, format="dataset")
    parquet(tmp_path / "a.parquet", "a", "b", "")
    with pytest.raises(UserError, match=r"a.parquet, row 3: `prompt` is empty"):
        texts_in(tmp_path, format="dataset")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a.parquet: not a parquet or arrow file"):
        texts_in(tmp_path, format="dataset")
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match="no parquet or arrow file there"):
        texts_in(tmp_path, format="dataset")


def test_a_split_belongs_to_datasets_only():
    with pytest.raises(ValueError, match="format text has no split"):
        PromptSource(format="text", path="a.txt", split="train")


# --- before a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a zebra"}', "prompt 'a zebra': unknown word `zebra`"),
        ('{"prompt": "\\ud83d"}', "unknown word"),
        (json.dumps({"prompt": "a " * 13}), "13 words, but the model reads at most 12"),
    ],
)
def test_a_prompt_that_the_model_cannot_read_is_refused_before_training(tmp_path, line, message):
    good = '{"prompt": "a plain star on a beach"}\n'
    (tmp_path / "set.jsonl").write_text(good * 1500 + line)
    sources = f"prompts=[{{format: micro}}, {{format: jsonl, path: {tmp_path / 'set.jsonl'}}}]"
    settings = tiny_settings("htgrpo", tiny_checkpoint(tmp_path / "model"), tmp_path / "run", sources)
    with pytest.raises(UserError) as caught:
        start(settings)
    assert str(caught.value).startswith(f"{tmp_path}/set.jsonl:1501: ") and message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_prompt_that_is_too_long_for_lumina_is_refused_before_its_weights_are_read(tmp_path, lumina_folder):
    for file in lumina_folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / "set.txt").write_text("a cat\n" + "cat " * 300)
    sets = [f"model.checkpoint={tmp_path}", f"prompts=[{{format: text, path: {tmp_path}/set.txt}}]"]
    sets += [f"out={tmp_path}/run"]
    settings = load_settings([CONFIGS / "model/lumina.yaml", CONFIGS / "method/htgrpo.yaml"], sets)
    with pytest.raises(UserError, match=r"set.txt:2: prompt .*: 313 ids with the template, but there is room for 256"):
        start(settings)


def test_prompt_length_may_be_raised_on_resume_and_not_lowered():
    def settings(model, *sets):
        return load_settings([CONFIGS / f"model/{model}.yaml", CONFIGS / "method/htgrpo.yaml"], sets)

    refuse_other_settings(settings("lumina", "model.prompt_length=300"), settings("lumina"))
    with pytest.raises(UserError, match="the run there has model.prompt_length 256, not 200"):
        refuse_other_settings(settings("lumina", "model.prompt_length=200"), settings("lumina"))
    seen = "model.attention=as-maskgrpo"  # there the pads are part of the prompt
    with pytest.raises(UserError, match="the run there has model.prompt_length 257, not 300"):
        refuse_other_settings(settings("mmada", "model.prompt_length=300", seen), settings("mmada", seen))
