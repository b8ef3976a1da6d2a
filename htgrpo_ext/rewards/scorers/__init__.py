"""Reward models. Each file has a class `Scorer`; each reward it gives has a row in `REWARDS`.

A file here imports nothing at the top but torch, numpy, pillow and light parts of this project, because a heavy reward
runs in an environment of its own, without accelerate and with another version of transformers. A scorer of your own
needs no row: `htgrpo serve-reward mine.py:MyReward` serves it.
"""

import importlib
import importlib.util
import inspect
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.rewards.registry import REWARDS, Reward


class Scorer(Protocol):
    """A reward model, loaded on one device. Its keyword arguments after the device are its options.

    rewards  names of the rewards that it gives

    It may have an attribute `cut_prompts`, the number of prompts so far of which the model read only the start; and a
    static method `check_prompt(prompt)` that raises ValueError, one line, for a prompt that it can never score. A run
    calls that for each of its prompts before it loads a model.
    """

    rewards: ClassVar[tuple[str, ...]]

    def __init__(self, device: torch.device, **options: Any): ...

    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> Mapping[str, Sequence[float]]:
        """Score each image; one image's scores do not depend on the others.

        prompts  one per image, each at least {"prompt": text}; with GenEval's metadata where the reward reads them
        images   uint8 [3, H, W] each, on the CPU; sizes may differ
        Returns  of each reward one score per image, in order; NaN where an image has none
        Raises   ValueError, one line, for an input that no retry can score
        """
        ...


def scorer_class(name: str) -> type[Scorer]:
    """The class of a reward in `REWARDS`, of a module in this folder (`micro`), or of `file.py:Class`.

    Raises UserError.
    """
    if ":" in name:
        file, _, wanted = name.partition(":")
        module = module_of(Path(file))
    else:
        module, wanted = importlib.import_module(f"{__name__}.{_scorer_name(name)}"), "Scorer"
    found = getattr(module, wanted, None)
    if found is None or not callable(getattr(found, "score", None)) or not getattr(found, "rewards", None):
        raise UserError(f"{name}: no class with `rewards` and `score` (see htgrpo_ext/rewards/scorers/__init__.py)")
    return found


def prompt_check(name: str) -> Callable[[dict], object] | None:
    """`check_prompt` of a reward in `REWARDS`; None if it has none, and for a reward that is not ours."""
    return getattr(scorer_class(name), "check_prompt", None) if name in REWARDS else None


def _scorer_name(name: str) -> str:
    if name in REWARDS:
        return REWARDS[name].scorer
    if name not in {reward.scorer for reward in REWARDS.values()}:
        names = sorted(REWARDS.keys() | {reward.scorer for reward in REWARDS.values()})
        raise UserError(f"unknown reward `{name}` (one of {', '.join(names)}, or file.py:Class)")
    return name


def module_of(file: Path) -> ModuleType:
    """A user's Python file as a module. Raises UserError for whatever goes wrong in it."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    specification = importlib.util.spec_from_file_location(file.stem, file)
    if specification is None or specification.loader is None:
        raise UserError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever the file does
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
        raise UserError(f"{file}:{line or 1}: {type(error).__name__}: {one_line(error)}") from None
    return module


def code_scorer(reward: Reward) -> Callable[[Sequence[dict], Tensor, Sequence[str]], dict[str, Tensor]]:
    """`score_codes(prompts, codes_BN, names)` of a reward that reads codes: of each name float32 [B]."""
    return importlib.import_module(f"{__name__}.{reward.scorer}").score_codes


def device_of(name: str, option: str) -> torch.device:
    """The device called `cpu`, `cuda` or `cuda:1`. Raises UserError, which names the option, if there is none."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UserError(f"{option} {one_line(name, 40)}: no device (cpu, cuda, cuda:1 ..)")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{option} {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def check_options(scorer: type[Scorer], name: str, options: Mapping[str, Any]) -> None:
    """Raise UserError for an option that the scorer does not have or that has another type, or for a missing one."""
    parameters = list(inspect.signature(scorer).parameters.values())[1:]  # after the device
    known = [parameter.name for parameter in parameters]
    wrong = [
        f"reward {name}: unknown option `{key}` (one of {', '.join(known) or 'none'})" for key in options.keys() - known
    ]
    wrong += [
        f"reward {name}: option `{parameter.name}` is missing"
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty and parameter.name not in options
    ]
    for parameter in parameters:
        if parameter.name in options and _is_plain(parameter.annotation):
            try:
                TypeAdapter(parameter.annotation).validate_python(options[parameter.name], strict=True)
            except ValidationError as error:
                said, value = error.errors()[0]["msg"], one_line(repr(options[parameter.name]), 60)
                said = said[0].lower() + said[1:].replace("valid string", "text in quotes")
                wrong.append(f"reward {name}: option `{parameter.name}`: {said} (got {value})")
    if wrong:
        raise UserError("\n".join(sorted(wrong)))


def _is_plain(annotation: Any) -> bool:
    """Whether it is a type of the values that YAML has, a union of such, or a Literal."""
    plain = set(get_args(annotation) or (annotation,)) <= {str, int, float, bool, type(None)}
    return plain or get_origin(annotation) is Literal
