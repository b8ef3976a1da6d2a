"""Prompts in files: text, JSON lines, GenEval's metadata, datasets. Every message names the file and the line.

A prompt is a dictionary with at least {"prompt": text}, and GenEval's metadata if the file has them.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.prompts.settings import SPLITS, PromptSource
from htgrpo_ext.rewards.texts import wanted_text


class Line(NamedTuple):
    prompt: dict
    place: str  # FILE:LINE, or FILE, row ROW; both from 1


def read_prompts(source: PromptSource) -> list[Line]:
    """All prompts of a file or a folder. Raises UserError that names file and line."""
    path = source.path
    if path is None or not path.exists():
        hint = ""
        if path and "upstream" in path.parts:
            hint = "; `make upstream` brings MaskGRPO's, `htgrpo prompts geneval-train` writes others of that kind"
        raise UserError(f"{path}: no such file (prompts.path){hint}")
    if source.format == "dataset":
        lines = [line for file in _dataset_files(path, source.split) for line in _column(file, source.column)]
    else:
        lines = list(_lines(path, source))
    if not lines:
        raise UserError(f"{path}: holds no prompt")
    return lines


def _lines(path: Path, source: PromptSource) -> Iterator[Line]:
    for text, place in text_lines(path):
        if source.format == "text":
            yield Line({"prompt": text}, place)
        elif source.format == "jsonl":
            yield Line({"prompt": text_at(source.column, json_object(text, place), place)}, place)
        elif source.format == "text-rendering":
            yield Line(_with_text(json_object(text, place), place), place)
        else:
            yield Line(geneval_metadata(text, place), place)


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, each with its place. Only a line feed ends one, as in JSON lines."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    for number, line in enumerate(lines, 1):
        if text := line.strip():
            yield text, f"{path}:{number}"


def _parsed(text: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def json_object(text: str, place: str) -> dict:
    """The JSON object of a line. Raises UserError for anything else."""
    if not isinstance(value := _parsed(text), dict):
        raise UserError(f"{place}: not a JSON object")
    return value


def text_at(key: str, value: dict, place: str, setting: str = "prompts.column") -> str:
    """The text under a key of a line. Raises UserError if there is none; `setting` chooses another key."""
    if key not in value:
        raise UserError(f"{place}: no key `{key}` (it has {', '.join(value)}; {setting})")
    return _text(value[key], place, key)


def geneval_metadata(text: str, place: str) -> dict:
    """GenEval's metadata of a line. Raises UserError for anything else."""
    if problem := _geneval_problem(value := _parsed(text)):
        raise UserError(f"{place}: not GenEval metadata ({problem})")
    return value


def _with_text(value: dict, place: str) -> dict:
    """A prompt, and the text that its picture should have, from its metadata or between double quotes."""
    prompt = value | {"prompt": text_at("prompt", value, place)}
    try:
        return prompt | {"text": wanted_text(prompt)}
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None


def _text(value: Any, place: str, column: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place}: `{column}` is {'null' if value is None else f'a {type(value).__name__}'}, not text")
    if not value.strip():
        raise UserError(f"{place}: `{column}` is empty")
    return value


def _geneval_problem(value: Any) -> str | None:
    """What keeps a line from being GenEval's metadata, if anything."""

    def is_text(value: Any) -> bool:
        return isinstance(value, str) and bool(value.strip())

    def is_count(value: Any, most: float = float("inf")) -> bool:
        return type(value) is int and 0 <= value < most

    if not isinstance(value, dict) or not {"tag", "include", "prompt"} <= value.keys():
        return "a JSON object with tag, include and prompt"
    for key in ("tag", "prompt"):
        if not is_text(value[key]):
            return f"`{key}` is not text, or is empty"
    for key in ("include", "exclude"):
        entries = value.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return f"`{key}` is not a list of objects"
        for entry in entries:
            if not is_text(entry.get("class")):
                return f"a class of `{key}` is {json.dumps(entry.get('class'))}"
            if not is_count(entry.get("count")) or not entry["count"]:
                return f"a count of `{key}` is {json.dumps(entry.get('count'))}"
            if "color" in entry and not is_text(entry["color"]):
                return f"a color of `{key}` is {json.dumps(entry['color'])}"
            position = entry.get("position", ["", 0])
            if not isinstance(position, list) or len(position) != 2 or not is_count(position[1], len(entries)):
                return f"a position of `{key}` is {json.dumps(position)}"
    return None if value["include"] else "`include` is empty"


def _dataset_files(path: Path, split: str | None) -> list[Path]:
    """The parquet and arrow files of a dataset: a file, or a folder without hidden ones, of one split.

    Raises UserError if there are several splits and none was chosen.
    """
    if path.is_file():
        return [path]
    files: dict[str, list[Path]] = {}
    for folder, inner, names in os.walk(path, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))  # such as .cache, .ipynb_checkpoints
        for name in sorted(names):
            # `datasets` keeps results of a map or filter in cache-*
            if name.endswith((".parquet", ".arrow")) and not name.startswith((".", "cache-")):
                file = Path(folder, name)
                files.setdefault(_split_of(file.relative_to(path)), []).append(file)
    if not files:
        raise UserError(f"{path}: no parquet or arrow file there (prompts.path)")
    if split is None and len(files) > 1:
        found = ", ".join(f"{name} ({len(held)} files, {held[0].name})" for name, held in sorted(files.items()))
        raise UserError(f"{path}: several splits, {found}; choose one (prompts.split, or the path of a file)")
    if split is not None and split not in files:
        raise UserError(f"{path}: no split `{split}` (there is {', '.join(sorted(files))}; prompts.split)")
    return files[split] if split else next(iter(files.values()))


def _split_of(path: Path) -> str:
    """The split that a file's or folder's name says, `other` if none does."""
    words = re.split("[^a-z]+", str(path).lower())
    return next((split for split, names in SPLITS.items() if any(word in names for word in words)), "other")


def _column(file: Path, column: str) -> Iterator[Line]:
    """A text column of a parquet file, or of an arrow file of Hugging Face's `save_to_disk`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("prompts of format dataset need pyarrow (pip install 'htgrpo-ext[dataset]')") from None
    try:
        if file.suffix == ".arrow":
            with pyarrow.memory_map(str(file)) as stream:
                table = pyarrow.ipc.open_stream(stream).read_all()
        else:
            table = parquet.read_table(file)
        if column not in table.column_names:
            raise UserError(f"{file}: no column `{column}` (it has {', '.join(table.column_names)}; prompts.column)")
        values = table[column].to_pylist()
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise UserError(f"{file}: not a parquet or arrow file ({one_line(error)})") from None
    for number, value in enumerate(values, 1):
        place = f"{file}, row {number}"
        yield Line({"prompt": _text(value, place, column)}, place)
