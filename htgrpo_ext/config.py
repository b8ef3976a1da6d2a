"""YAML files and `--set` become one checked `RunSettings`. Each mistake is one line that names the key and the file.

Files are merged from left to right: mappings key by key; other values are replaced. A `method`, `model` or `eval` with
another name replaces the whole section, because its keys have other meanings.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from htgrpo_ext.documents import Keys, Refused, plain_value, read_yaml, write_yaml
from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.files import write_atomically
from htgrpo_ext.settings import CHOICES, RunSettings

Sources = dict[Keys, str]  # the file or --set that last gave each place

_HERE = Path(__file__).parent
# In an installed package configs/ is beside this file, in the repository one folder up.
CONFIGS = next((folder for folder in (_HERE / "configs", _HERE.parent / "configs") if folder.is_dir()), Path("configs"))
LARGEST_FILE = 2**20  # bytes; a file of settings has three thousand
SCALARS = ("str", "int", "float", "bool")  # pydantic's marks for a value that may be any of them


def load_settings(files: Sequence[Path], overrides: Sequence[str] = (), processes: int = 1) -> RunSettings:
    """Read, merge and check the configuration of a run.

    files      YAML files; later ones win. One that is not there is looked for among the packaged ones: `model/micro`,
               `configs/model/micro.yaml`. Paths in a file are relative to it
    overrides  `key.sub=value` each, applied after the files. The value is YAML, or text as it stands where the setting
               is text or a path; paths are relative to the current folder
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
        _merge(tree, given, one_line(source if read is _read_file else f"--set {source}"), sources)
    if wrong:
        raise UserError("\n".join(wrong))
    try:
        # As JSON and strictly: no text is taken for a number, and no truth value.
        settings = RunSettings.model_validate_json(json.dumps(tree), strict=True)
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
    """`key=value` each as a mapping; a value is a number, true or false, or text. The last of a key counts.

    Raises UserError.
    """
    options: dict[str, Any] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if not key.strip() or key == override:
            raise UserError(f"--set {one_line(override)}: expected option=value")
        try:
            options[key.strip()] = plain_value(value)
        except ValueError as error:
            raise UserError(f"--set {one_line(override)}: {error}") from None
    return options


def save_settings(settings: RunSettings, path: Path) -> None:
    """Write the resolved settings as YAML that `load_settings` reads back; whole or not at all.

    Where `path` and the current folder are of one tree, paths in that tree are written relative to it, so that the
    tree can be moved; all others are absolute.
    """

    def written(where: str) -> str:
        inside = not os.path.isabs(where) and not os.path.isabs(near(path.parent))
        return os.path.relpath(where, path.parent) if inside else os.path.abspath(where)

    write_atomically(path, write_yaml(_with_paths(settings.model_dump(mode="json"), written)))


def near(path: str | Path) -> str:
    """A path relative to the current folder if it is in it, else absolute; without `.` and `..`."""
    absolute, here = os.path.abspath(path), os.getcwd()
    return os.path.relpath(absolute, here) if Path(absolute).is_relative_to(here) else absolute


def config_files(kind: str, names: str) -> list[Path]:
    """The files of configs given by name, with commas between: configs/`kind`/NAME.yaml, or a path that ends in .yaml.

    Raises UserError that lists the names there are.
    """
    files, unknown = [], []
    for name in filter(None, map(str.strip, names.split(","))):
        files.append(Path(name) if name.endswith(".yaml") else Path(near(CONFIGS / kind / f"{name}.yaml")))
        if not files[-1].is_file():
            there = ", ".join(sorted(file.stem for file in (CONFIGS / kind).glob("*.yaml")))
            unknown.append(f"unknown {kind} `{one_line(name)}` (one of {there})")
    if unknown or not files:
        raise UserError("\n".join(unknown) or f"no {kind} is named")
    return files


def ablation_files(number: int) -> list[list[Path]]:
    """The files of each row of an ablation: the full method, then configs/ablation/aN-*.yaml over it."""
    [full] = config_files("method", "htgrpo")
    found = sorted((CONFIGS / "ablation").glob(f"a{number}-*.yaml"))
    return [[full], *([full, Path(near(file))] for file in found)]


# --- files and overrides to one tree ---------------------------------------------------------------------------


def _read_file(name: str) -> dict:
    shown, file = one_line(name), Path(name)
    packaged = CONFIGS.parent / name if file.parts[:1] == ("configs",) else CONFIGS / name
    try:
        if not file.exists() and not file.is_absolute():
            file = next((p for p in (packaged, Path(f"{packaged}.yaml")) if p.is_file()), file)
        with file.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{shown}: no file of settings (larger than a MiB)")
        tree = read_yaml(content.decode("utf-8-sig"), _is_text)
    except FileNotFoundError:
        raise UserError(f"{shown}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{shown}{_yaml_error(error)}") from None
    if tree is None:
        raise UserError(f"{shown}: empty, expected settings")
    if not isinstance(tree, dict):
        raise UserError(f"{shown}: expected sections such as `method:`, got {_shown(tree)}")
    return _with_paths(tree, lambda path: near(file.parent / os.path.expanduser(path)))


def _read_override(text: str) -> dict:
    shown = one_line(text)
    key, equals, value = text.partition("=")
    keys = tuple(key.strip().split("."))
    if not equals or not all(keys):
        raise UserError(f"--set {shown}: expected key=value, such as loop.cycles=2")
    try:
        value.encode()
        tree = _text(value, keys) if _is_text(keys) else read_yaml(value, lambda place: _is_text((*keys, *place)))
    except UnicodeEncodeError:
        raise UserError(f"--set {shown}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise UserError(f"--set {shown}{_yaml_error(error, with_line=False)}") from None
    for part in reversed(keys):
        tree = {part: tree}
    return _with_paths(tree, lambda path: near(os.path.expanduser(path)))


def _text(value: str, place: Keys) -> str | None:
    return None if value in ("", "null") and NoneType in _types(place) else value


def _yaml_error(error: yaml.YAMLError, with_line: bool = True) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark and with_line else ""
    problem = one_line(getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable")
    return f"{line}: {problem}" if isinstance(error, Refused) else f"{line}: not valid YAML ({problem})"


def _with_paths(tree: Any, change: Callable[[str], str], place: Keys = ()) -> Any:
    """A copy of the tree with `change` applied to the settings that are paths."""
    if isinstance(tree, dict):
        return {key: _with_paths(value, change, (*place, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_paths(value, change, (*place, str(i))) for i, value in enumerate(tree)]
    return change(tree) if isinstance(tree, str) and tree and Path in _types(place) else tree


def _is_text(place: Keys) -> bool:
    types = _types(place)
    return bool(types) and types <= {str, Path, NoneType}


def _types(place: Keys) -> set[type]:
    """The types that the settings may have at a place; a Literal's is that of its values."""
    found: list[Any] = [RunSettings]
    for key in place:
        found = [inner for annotation in found for inner in _within(annotation, key)]
    return {leaf for annotation in found for leaf in _leaves(annotation)}


def _within(annotation: Any, key: str) -> list[Any]:
    """Annotations of what `annotation` holds under a key."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation.model_fields[key].annotation] if key in annotation.model_fields else []
    inner = get_args(annotation)
    if get_origin(annotation) is dict:
        return [inner[1]]
    if get_origin(annotation) in (list, tuple):
        return [inner[0]]
    return [found for each in _members(annotation) for found in _within(each, key)]


def _leaves(annotation: Any) -> set[type]:
    origin = get_origin(annotation)
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    if origin in (None, dict, list, tuple):
        return {origin or annotation}
    return {leaf for each in _members(annotation) for leaf in _leaves(each)}


def _members(annotation: Any) -> tuple[Any, ...]:
    """What a union, or an annotated type, is made of."""
    return get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]


def _merge(into: dict, given: dict, source: str, sources: Sources, at: Keys = ()) -> None:
    """Merge `given` into `into` in place, and note which source gave each place."""
    for key, value in given.items():
        place, old = (*at, key), into.get(key)
        sources[place] = source
        if not isinstance(value, dict):
            into[key] = value
            continue
        known = old.get("name") if isinstance(old, dict) else None
        if not isinstance(old, dict) or (key in CHOICES and not at and known and value.get("name", known) != known):
            into[key] = {}
        _merge(into[key], value, source, sources, place)


def _place(error: ErrorDetails) -> Keys:
    """The place of an error as a user would write it, without pydantic's own marks."""
    keys = [str(part) for part in error["loc"] if part != "[key]"]
    if len(keys) > 1 and keys[1] in CHOICES.get(keys[0], ()):
        del keys[1]
    return tuple(keys[:-1] if _any_scalar(error) else keys)


def _any_scalar(error: ErrorDetails) -> bool:
    return error["loc"][-1] in SCALARS and error["type"] != "extra_forbidden"


def _line(error: ErrorDetails, tree: dict, sources: Sources, files: str) -> str:
    """One error of pydantic as one line for the user."""
    place = _place(error)
    source = next((sources[place[:end]] for end in range(len(place), 0, -1) if place[:end] in sources), files)
    return f"{source}: {_complaint(error, place, tree)}"


def _complaint(error: ErrorDetails, place: Keys, tree: dict) -> str:
    name, got, context = one_line(".".join(place)), _shown(error["input"]), error.get("ctx", {})
    if _any_scalar(error):
        return f"{name} must be text, a number, true or false (got {got})"
    match error["type"]:
        case "extra_forbidden":
            return _unknown("key", place[-1], _valid_keys(error["loc"]))
        case "literal_error" if error["loc"][-1] == "[key]":
            return _unknown("key", place[-1], re.findall("'(.*?)'", context["expected"]))
        case "union_tag_invalid":
            given = tree[name]["name"]
            return _unknown(name, given if isinstance(given, str) else _shown(given), sorted(CHOICES[name]))
        case "union_tag_not_found":
            return f"{name}.name is missing (one of {', '.join(sorted(CHOICES[name]))})"
        case "missing":
            return f"{name} is missing"
        case "value_error":
            return f"{name}: {context['error']}"
        case "bool_type":
            return f"{name} must be true or false (got {got})"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{name} must be a section of settings (got {got})"
    reason = error["msg"].replace("Input should", "must").split(", unable to parse")[0]
    return f"{name} {reason} (got {got})"


def _unknown(what: str, given: str, valid: Sequence[str]) -> str:
    alike = get_close_matches(given, valid, n=1)
    hint = f"did you mean `{alike[0]}`?" if alike else f"one of {', '.join(valid)}"
    return f"unknown {what} `{one_line(given)}` ({hint})"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
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
    except Exception:  # what is checked depends on a field that is wrong, and has its line already
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
