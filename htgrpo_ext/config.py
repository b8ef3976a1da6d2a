"""YAML files and `--set` become one checked `RunSettings`. Each mistake is one line that names the key and the file.

Files are merged from left to right: mappings key by key; other values are replaced. A `method`, `model` or `eval` with
another name replaces the whole section, because its keys have other meanings.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from htgrpo_ext.errors import UserError
from htgrpo_ext.files import write_atomically
from htgrpo_ext.settings import CHOICES, RunSettings

Keys = tuple[str, ...]  # a place in the settings: ("method", "rates", "global")
Sources = dict[Keys, str]  # the file or --set that last gave each place


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where it matters: 1e-4 is a number, and a key given twice an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"`{key.value}` is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_settings(files: Sequence[Path], overrides: Sequence[str] = (), processes: int = 1) -> RunSettings:
    """Read, merge and check the configuration of a run.

    files      YAML files; later ones win
    overrides  `key.sub=value` each, the value in YAML; applied after the files
    processes  how many processes share a cycle's prompts

    Raises UserError with all mistakes, one line each.
    """
    tree: dict[str, Any] = {}
    sources: Sources = {}
    wrong = []
    for source, read in [*((str(f), _read_file) for f in files), *((o, _read_override) for o in overrides)]:
        try:
            given = read(source)
        except UserError as error:
            wrong.append(str(error))
            continue
        _merge(tree, given, source if read is _read_file else f"--set {source}", sources)
    if wrong:
        raise UserError("\n".join(wrong))
    try:
        settings = RunSettings.model_validate(tree)
    except ValidationError as error:
        wrong, bad = [], []
        for each in error.errors():
            bad.append(_place(each))
            wrong.append(_line(each, tree, sources, ", ".join(map(str, files))))
        raise UserError("\n".join(dict.fromkeys(wrong + _other_problems(tree, bad, processes)))) from None
    if problems := settings.problems(processes):
        raise UserError("\n".join(problems))
    return settings


def read_options(overrides: Sequence[str]) -> dict[str, Any]:
    """`key=value` each, the value YAML, as a mapping; the last of a key counts. Raises UserError."""
    options: dict[str, Any] = {}
    for override in overrides:
        options |= _read_override(override)
    return options


def save_settings(settings: RunSettings, path: Path) -> None:
    """Write the resolved settings as YAML that `load_settings` reads back; whole or not at all."""
    # Escaped, not as it is: YAML reads some characters, such as U+0085, as ends of lines.
    write_atomically(path, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))


def _read_file(name: str) -> dict:
    try:
        tree = yaml.load(Path(name).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}{_yaml_error(error)}") from None
    if tree is None:
        raise UserError(f"{name}: empty, expected settings")
    if not isinstance(tree, dict):
        raise UserError(f"{name}: expected sections such as `method:`, got {_shown(tree)}")
    return tree


def _read_override(text: str) -> dict:
    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {text}: expected key=value, such as loop.cycles=2")
    try:
        tree = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}{_yaml_error(error, with_line=False)}") from None
    for part in reversed(keys):
        tree = {part: tree}
    return tree


def _yaml_error(error: yaml.YAMLError, with_line: bool = True) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark and with_line else ""
    return f"{line}: not valid YAML ({getattr(error, 'problem', None) or 'unreadable'})"


def _merge(into: dict, given: dict, source: str, sources: Sources, at: Keys = ()) -> None:
    """Merge `given` into `into` in place, and note which source gave each place."""
    for key, value in given.items():
        place, old = (*at, str(key)), into.get(key)
        sources[place] = source
        if not isinstance(value, dict):
            into[key] = value
            continue
        names = {part["name"] for part in (old, value) if isinstance(part, dict) and part.get("name")}
        if not isinstance(old, dict) or (key in CHOICES and not at and len(names) > 1):
            into[key] = {}
        _merge(into[key], value, source, sources, place)


def _place(error: ErrorDetails) -> Keys:
    """The place of an error as a user would write it, without pydantic's own marks."""
    keys = [str(part) for part in error["loc"] if part != "[key]"]
    if len(keys) > 1 and keys[1] in CHOICES.get(keys[0], ()):
        del keys[1]
    return tuple(keys)


def _line(error: ErrorDetails, tree: dict, sources: Sources, files: str) -> str:
    """One error of pydantic as one line for the user."""
    place = _place(error)
    source = next((sources[place[:end]] for end in range(len(place), 0, -1) if place[:end] in sources), files)
    return f"{source}: {_complaint(error, place, tree)}"


def _complaint(error: ErrorDetails, place: Keys, tree: dict) -> str:
    name, got, context = ".".join(place), _shown(error["input"]), error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return _unknown("key", place[-1], _valid_keys(error["loc"]))
        case "literal_error" if error["loc"][-1] == "[key]":
            return _unknown("key", place[-1], re.findall("'(.*?)'", context["expected"]))
        case "union_tag_invalid":
            return _unknown(name, str(tree[name]["name"]), sorted(CHOICES[name]))
        case "union_tag_not_found":
            return f"{name}.name is missing (one of {', '.join(sorted(CHOICES[name]))})"
        case "missing":
            return f"{name} is missing"
        case "value_error":
            return f"{name}: {context['error']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{name} must be a section of settings (got {got})"
    reason = error["msg"].replace("Input should", "must").split(", unable to parse")[0]
    return f"{name} {reason} (got {got})"


def _unknown(what: str, given: str, valid: Sequence[str]) -> str:
    near = get_close_matches(given, valid, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"one of {', '.join(valid)}"
    return f"unknown {what} `{given}` ({hint})"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    return f"a {'section' if isinstance(value, dict) else 'list'}" if isinstance(value, dict | list) else repr(value)


def _valid_keys(loc: Sequence[str | int]) -> list[str]:
    """The keys that the section around `loc` takes."""
    section: type[BaseModel] = RunSettings
    named = CHOICES.get(str(loc[0]), {})
    for part in loc[:-1]:
        if part in named:
            section = named[part]
        elif part in section.model_fields:
            section = _section_in(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The first settings class in an annotation such as `dict[Stage, StageRates]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _other_problems(tree: dict, bad: Sequence[Keys], processes: int) -> list[str]:
    """Problems between the valid fields, when other fields are invalid."""
    for *keys, last in bad:
        section: Any = tree
        for key in keys:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(last, None)
    try:
        sections = {
            name: _unchecked(CHOICES[name][section["name"]] if name in CHOICES else field.annotation, section)
            for name, field in RunSettings.model_fields.items()
            if (section := tree.get(name)) is not None
        }
        found = RunSettings.model_construct(**sections).problems(processes)
    except (AttributeError, TypeError, KeyError):  # a field that all depends on is among the bad ones
        return []
    return [line for line in found if not any(".".join(place[:2]) in line for place in bad)]


def _unchecked(annotation: Any, value: Any) -> Any:
    """`value` as unchecked sections; also within lists, mappings and `Section | None`."""
    inner = get_args(annotation)
    if isinstance(value, list):
        return [_unchecked(inner[0] if inner else None, each) for each in value]
    if get_origin(annotation) is dict and isinstance(value, dict):
        return {key: _unchecked(inner[1], each) for key, each in value.items()}
    section = _section_in(annotation)
    if section is None or not isinstance(value, dict):
        return value
    fields = section.model_fields
    given = {key: _unchecked(fields[key].annotation if key in fields else None, each) for key, each in value.items()}
    return section.model_construct(**given)
