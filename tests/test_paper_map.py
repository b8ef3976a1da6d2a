"""docs/paper.md names every equation, and what it names exists."""

import ast
import importlib
import re
from functools import cache

import pytest

from helpers.paths import ROOT, TESTS

HEAD = "| Eq. |"
PAGE = (ROOT / "docs" / "paper.md").read_text()
ROWS = {
    cells[0]: cells[1:]
    for line in PAGE[PAGE.index(HEAD) :].splitlines()[2:]
    if (cells := [cell.strip() for cell in line.strip("|").split("|")])[1:]
}
each_row = pytest.mark.parametrize("number", ROWS)


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def named(name: str):
    """The object that `name` is, in the package: a module's attribute, or an attribute of a class there."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(["htgrpo_ext", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


def equations_in(text: str) -> set[int]:
    """Numbers after `Eq.`, single or as ranges: "Eq. 2, 11-13"."""
    numbers = set()
    for listed in re.findall(r"Eq\. ((?:\d+(?:-\d+)?)(?:, \d+(?:-\d+)?)*)", text.replace("\n", " ")):
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", listed):
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def test_every_equation_and_the_algorithm_have_a_row():
    assert list(ROWS) == [*map(str, range(2, 31)), "Algorithm 1"]


@each_row
def test_the_code_exists_and_its_docstring_names_the_equation(number):
    names = re.findall(r"`([\w.]+)`", ROWS[number][1])
    assert names
    for name in names:
        text = named(name).__doc__ or ""
        assert number in text if number.startswith("Algorithm") else int(number) in equations_in(text), name


@each_row
def test_the_tests_exist(number):
    tests = re.findall(r"`([\w/.]+)::(\w+)`", ROWS[number][2])
    assert tests
    for file, name in tests:
        assert name in functions_of(file), f"{file}::{name}"
