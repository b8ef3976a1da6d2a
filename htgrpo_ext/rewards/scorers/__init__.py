"""Reward models, one file each with a class `Scorer` and a row in `REWARDS`: `htgrpo serve-reward NAME` serves it.

A file here imports nothing at the top but torch, numpy, pillow and this project's light parts: a heavy reward's own
environment has neither transformers' pinned version nor accelerate. A reward of one's own is such a class in a file of
one's own, `htgrpo serve-reward mine.py:MyReward`.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from htgrpo_ext.errors import UserError
from htgrpo_ext.rewards.registry import REWARDS, Reward


class Scorer(Protocol):
    """A reward model, loaded on one device. Keyword arguments after the device are its options.

    rewards  names of the rewards it gives
    """

    rewards: ClassVar[tuple[str, ...]]

    def __init__(self, device: torch.device, **options: Any): ...

    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """Each reward of each image, in order; NaN for an image that has none. What is scored with it changes none.

        prompts  one per image, each at least {"prompt": text}; GenEval's metadata where a reward reads it
        images   uint8 [3, H, W] each, on the CPU; sizes may differ

        Raises ValueError, one line, for what cannot be scored however often it is tried.
        """
        ...


def scorer_names() -> list[str]:
    """The scorers that `REWARDS` names."""
    return sorted({reward.scorer for reward in REWARDS.values()})


def scorer_class(name: str) -> type[Scorer]:
    """The class behind a name of this folder, or behind `file.py:Class`. Raises UserError."""
    if ":" in name:
        file, _, wanted = name.partition(":")
        module = _module_of(Path(file))
    elif name in scorer_names():
        module, wanted = importlib.import_module(f"{__name__}.{name}"), "Scorer"
    else:
        raise UserError(f"unknown reward `{name}` (one of {', '.join(scorer_names())}, or file.py:Class)")
    found = getattr(module, wanted, None)
    if not callable(getattr(found, "score", None)) or not getattr(found, "rewards", None):
        raise UserError(f"{name}: no class with `rewards` and `score` (see htgrpo_ext/rewards/scorers/__init__.py)")
    return found


def _module_of(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    specification = importlib.util.spec_from_file_location(file.stem, file)
    if specification is None:
        raise UserError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def code_scorer(reward: Reward) -> Callable[[Sequence[dict], Tensor, Sequence[str]], dict[str, Tensor]]:
    """`score_codes(prompts, codes_BN, names)` of a reward that reads the codes of a world: each name, float32 [B]."""
    return importlib.import_module(f"{__name__}.{reward.scorer}").score_codes


def check_options(scorer: type[Scorer], name: str, options: Mapping[str, Any]) -> None:
    """UserError for an option that the scorer does not take, or one that it needs and does not get."""
    parameters = list(inspect.signature(scorer).parameters.values())[1:]  # after the device
    taken = [parameter.name for parameter in parameters]
    wrong = [
        f"reward {name}: unknown option `{key}` (one of {', '.join(taken) or 'none'})" for key in options.keys() - taken
    ]
    wrong += [
        f"reward {name}: option `{parameter.name}` is missing"
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty and parameter.name not in options
    ]
    if wrong:
        raise UserError("\n".join(sorted(wrong)))
