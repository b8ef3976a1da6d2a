"""What every backbone does with its model, whichever it is: adapters, accelerate's wrapper, the frozen reference."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from htgrpo_ext.core.randomness import derived_seed


def with_adapters(model: nn.Module, lora: dict, seed: int) -> nn.Module:
    """`model` wrapped in fresh LoRA adapters; `lora` are keywords of peft's LoraConfig."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "adapters"))  # peft's initialisers know no generator
        return get_peft_model(model, LoraConfig(**lora))


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy to compare with, for training without adapters."""
    return copy.deepcopy(model).eval().requires_grad_(False)


class Policy:
    """A model under training, and the reference policy it is compared with."""

    def __init__(self, model: nn.Module, reference: nn.Module | None = None):
        """`model` bare, or a PEFT model around it; `reference` a frozen copy, None to switch adapters off."""
        self.model = model
        self._policy: nn.Module = model
        self._reference = reference
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = base.config

    def route_through(self, wrapped: nn.Module) -> None:
        """Send the policy's forwards through accelerate's wrapper of `model`, which keeps processes in step."""
        self._policy = wrapped

    def prepare_decoder(self) -> None:
        """See `Backbone`: nothing to load, unless a subclass says so."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside this context forwards are the frozen reference policy's."""
        if self._reference is None:
            adapters_off = self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else nullcontext()
            with adapters_off:
                yield
            return
        policy, self._policy = self._policy, self._reference
        try:
            yield
        finally:
            self._policy = policy
