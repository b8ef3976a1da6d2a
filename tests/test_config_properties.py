"""Random documents and mutations of valid ones: refused in lines of their own, or read as what was written."""

import json
import math
import os
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.paths import CONFIGS
from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import UserError

FILES = [CONFIGS / "model/micro.yaml", CONFIGS / "method/htgrpo.yaml"]
PATHS = {"checkpoint", "path", "out"}  # keys of settings that are paths
MANY = settings(max_examples=300)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 10)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "1", "010", "1:30", "yes", "null", "nan", "a: b", "x" * 300, "\0", "\ud800"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("name"), inner, max_size=3)
    ),
    max_leaves=6,
)


def valid() -> dict:
    return load_settings(FILES).model_dump(mode="json")


VALID = valid()


def places(tree, place=()):
    """Every place in a tree, sections and lists included."""
    if place:
        yield place
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*place, key))


def load(files=(), overrides=()) -> dict | None:
    """The settings as plain values, None if they are refused as they should be: a line for each mistake."""
    try:
        return load_settings(files, overrides).model_dump(mode="json")
    except UserError as error:
        lines = str(error).split("\n")
        assert all(line and line.isprintable() and len(line) < 2000 for line in lines), lines
        return None


def agrees(written, read, folder: Path, key=None) -> bool:
    """Whether `read` is what was written; sections may have more keys, of defaults."""
    if isinstance(written, dict):
        return isinstance(read, dict) and all(agrees(v, read.get(k), folder, k) for k, v in written.items())
    if isinstance(written, list):
        return isinstance(read, list) and len(read) == len(written) and all(
            agrees(w, r, folder) for w, r in zip(written, read, strict=True)
        )  # fmt: skip
    if isinstance(read, str) and isinstance(written, int | float) and not isinstance(written, bool):
        written = json.dumps(written)  # a setting that is text
    if key in PATHS and isinstance(written, str):
        return os.path.abspath(folder / os.path.expanduser(written)) == os.path.abspath(read)
    if isinstance(written, float):
        return isinstance(read, float) and math.isfinite(read) and read == written
    if isinstance(written, int) and not isinstance(written, bool):
        return not isinstance(read, bool) and isinstance(read, int | float) and read == written
    return type(read) is type(written) and read == written


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed") / "mine.yaml"


@MANY
@given(st.sampled_from(list(places(VALID))), VALUES, st.booleans())
def test_a_mutated_configuration_is_refused_or_read_as_written(file, place, value, deleted):
    tree = json.loads(json.dumps(VALID))
    section = tree
    for key in place[:-1]:
        section = section[key]
    if deleted and isinstance(section, dict):
        del section[place[-1]]
    else:
        section[place[-1]] = value
    file.write_text(json.dumps(tree))  # JSON is YAML too
    read = load([file])
    assert read is None or agrees(tree, read, file.parent)


def value_at(tree, place):
    return reduce(lambda inner, key: inner[key], place, tree)


NUMBERS = [
    place
    for place in places(VALID)
    if isinstance(value_at(VALID, place), int | float) and all(isinstance(key, str) for key in place)
]


@MANY
@given(st.sampled_from(NUMBERS), st.text("0123456789.eE+-_:xXob~nayes ", min_size=1, max_size=7))
def test_a_plain_value_is_refused_or_the_number_that_it_is_in_every_reading(place, text):
    """Python's own reading is the oracle; a leading zero, `_` and `:` have another one in YAML."""
    read = load(FILES, [f"{'.'.join(place)}={text}"])
    if read is None:
        return
    digits = text.strip().lstrip("+-")
    value = value_at(read, place)
    if value is None:
        assert not text.strip("~ ")
        return
    assert text in ("true", "false") or float(text) == value
    assert "_" not in text and not (digits[:1] == "0" and digits[1:2].isdigit())


@MANY
@given(st.text("0123456789.:#{}[]&*!|>'\"%@`,?- =~\\abyes"))
def test_an_override_of_a_path_is_that_path(text):
    read = load(FILES, [f"model.checkpoint={text}"])
    assert read is None or os.path.abspath(read["model"]["checkpoint"]) == os.path.abspath(os.path.expanduser(text))


@MANY
@given(st.text("ab:{}[]&*!|>'\"%@`#-?,\n\t 01~<=\x85\u2028\0é"), st.sampled_from(["", "method", "loop.cycles", "a.b"]))
def test_no_document_is_a_traceback(file, text, key):
    file.write_text(text, encoding="utf-8")
    load([*FILES, file])
    load(FILES, [f"{key}={text}" if key else text])


@MANY
@given(st.binary(max_size=60))
def test_no_bytes_are_a_traceback(file, content):
    file.write_bytes(content)
    load([file])


@given(
    st.lists(st.tuples(st.sampled_from(["method", "loop", "reward", "terms", "0", "x", "name"]), VALUES), max_size=3)
)
def test_no_tree_of_overrides_is_a_traceback(overrides):
    shown = [f"{key}.{inner}={json.dumps(value)}" for key, value in overrides for inner in ("name", "x")]
    load(FILES, shown)
