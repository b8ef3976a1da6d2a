"""YAML with one meaning: numbers, true and false as JSON has them, all else text. What is ambiguous is refused.

YAML 1.1 reads 010 as 8, 1:30 as 90, yes as true and 2024-01-01 as a date; YAML 1.2 reads some of them otherwise.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import yaml

Keys = tuple[str, ...]  # a place in a document: ("method", "rates", "global"); an item of a list by its number

DEPTH = 32  # levels; settings have five
NODES = 100_000  # values, aliases written out: a few lines of aliases can stand for billions
DIGITS = 30  # of a whole number; the largest setting has ten

_TAG = "tag:yaml.org,2002:"
_AMBIGUOUS, _TRUTH = "!ambiguous", "!truth"  # numbers to some readers, truth values to some
_NUMBER = r"[-+]?(?:0|[1-9][0-9]*)"
_PLAIN = {
    f"{_TAG}null": r"~|null|Null|NULL|",
    f"{_TAG}bool": r"true|True|TRUE|false|False|FALSE",
    f"{_TAG}int": _NUMBER,
    f"{_TAG}float": rf"(?:{_NUMBER}(?:\.[0-9]*)?|[-+]?\.[0-9]+)(?:[eE][-+]?[0-9]+)?",
    _AMBIGUOUS: r"[-+]?0[0-9oO_][0-9_.eE+-]*",
}
_RESOLVERS = [(tag, re.compile(rf"(?:{pattern})\Z")) for tag, pattern in _PLAIN.items()] + [
    (_TRUTH if tag == f"{_TAG}bool" else _AMBIGUOUS, pattern)
    for resolvers in yaml.SafeLoader.yaml_implicit_resolvers.values()
    for tag, pattern in resolvers
    if tag in (f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool")
]


class Refused(yaml.MarkedYAMLError):
    """Valid YAML that is not read."""


class _Dumper(yaml.SafeDumper):  # text that this or another reader takes for something else gets quotes
    yaml_implicit_resolvers = {None: _RESOLVERS + sum(yaml.SafeLoader.yaml_implicit_resolvers.values(), [])}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {None: _RESOLVERS}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEPTH:
            raise Refused(problem=f"more than {DEPTH} levels", problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Reading:
    """Plain values of a composed document."""

    def __init__(self, loader: _Loader, is_text: Callable[[Keys], bool]):
        self.loader, self.is_text, self.nodes = loader, is_text, 0

    def value(self, node: yaml.Node, place: Keys = ()) -> Any:
        self.nodes += 1
        if self.nodes > NODES:
            raise _refusal(node, f"more than {NODES:,} values")
        if len(place) > DEPTH:  # an alias within what it stands for
            raise _refusal(node, f"more than {DEPTH} levels, or an alias that contains itself")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, place)
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            raise _refusal(node, f"tag `{node.tag}` is not read")
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*place, str(i))) for i, item in enumerate(node.value)]
        section = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal(key, "a key must be text")
            if key.value in section:
                raise _refusal(key, f"`{key.value}` is given twice")
            section[self.text(key)] = self.value(value, (*place, key.value))
        return section

    def scalar(self, node: yaml.ScalarNode, place: Keys) -> Any:
        text, plain = self.text(node), node.style is None
        kind = self.loader.resolve(yaml.ScalarNode, text, (plain, not plain))
        if node.tag != kind:
            raise _refusal(node, f"tag `{node.tag}` is not read")
        kind = kind.removeprefix(_TAG)
        if kind == "null":
            return None
        if kind == "str" or (self.is_text(place) and kind in ("int", "float", _AMBIGUOUS)):
            return text
        try:
            return plain_value(text, kind)
        except ValueError as error:
            raise _refusal(node, str(error)) from None

    def text(self, node: yaml.ScalarNode) -> str:
        if "\0" in node.value or re.search("[\ud800-\udfff]", node.value):
            raise _refusal(node, "a null character or half of a surrogate pair is no text")
        return node.value


def plain_value(text: str, kind: str | None = None) -> str | int | float | bool:
    """A number, true or false, or else the text as it is. Raises ValueError, one line, if it is ambiguous.

    kind  of the value if it is known: str, int, float, bool or ambiguous
    """
    if kind is None:
        tag = next((tag for tag, pattern in _RESOLVERS if pattern.match(text)), "str")
        kind = tag.removeprefix(_TAG)
    if kind in (_AMBIGUOUS, _TRUTH):
        raise ValueError(f"`{text}` is ambiguous: write a plain number, true or false, or text in quotes")
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int" and len(text) <= DIGITS:
        return int(text)
    if kind in ("int", "float"):
        number = float(text) if len(text) <= 10 * DIGITS else math.inf
        if kind == "int" or math.isinf(number) or (number == 0 and re.search("[1-9]", re.split("[eE]", text)[0])):
            shown = text if len(text) <= DIGITS else f"{text[:DIGITS]}.."
            raise ValueError(f"`{shown}` is beyond the range of a number")
        return number
    return text


def read_yaml(text: str, is_text: Callable[[Keys], bool] = lambda place: False) -> Any:
    """The value of a document: dict, list, str, int, float, bool or None; keys are text.

    is_text  whether the value at a place is text even where it looks like a number

    Raises Refused, or another yaml.YAMLError.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _Reading(loader, is_text).value(node)
    finally:
        loader.dispose()


def write_yaml(tree: dict) -> str:
    """YAML that `read_yaml` reads back equal, in ASCII: YAML takes some other characters as ends of lines."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def _refusal(node: yaml.Node, problem: str) -> Refused:
    return Refused(problem=problem, problem_mark=node.start_mark)
