"""Methods: each says, for every update of a rollout batch, what is visible, what is a target, what it weighs.

A method is a subclass of `Method` with a literal `name`; any file in this folder may define some.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import get_args

from htgrpo_ext.methods.base import Method


def _subclasses(of: type[Method]) -> list[type[Method]]:
    return [c for direct in of.__subclasses__() for c in (direct, *_subclasses(direct))]


for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

METHODS: dict[str, type[Method]] = {get_args(c.model_fields["name"].annotation)[0]: c for c in _subclasses(Method)}
