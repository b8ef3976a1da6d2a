"""What every backbone does with its model: adapters, accelerate's wrapper, the frozen reference policy."""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from htgrpo_ext.core.randomness import derived_seed
from htgrpo_ext.core.views import Prompts

COMPILER = "inductor"
GRAPHS = 64  # that the blocks may need; beyond it PyTorch computes without one


def is_target(name: str, targets: str | Sequence[str]) -> bool:
    """Whether a module gets an adapter, by peft's rule: a regular expression of whole names, or last parts of names."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def with_adapters(model: nn.Module, lora: dict[str, Any], seed: int) -> nn.Module:
    """`model` wrapped in fresh LoRA adapters; `lora` holds the keywords of peft's LoraConfig."""
    from peft.mapping import get_peft_model
    from peft.tuners.lora import LoraConfig

    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "adapters"))  # peft's initialisers take no generator
        return get_peft_model(model, LoraConfig(**lora))  # pyright: ignore[reportArgumentType], it takes any module


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that does not train, to compare with where there are no adapters to switch off."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def prepare_policy(
    model: nn.Module, lora: dict[str, Any] | None, seed: int, frozen: bool
) -> tuple[nn.Module, nn.Module | None]:
    """The model to train and the reference policy to compare it with; see `Policy`.

    lora    keywords of peft's LoraConfig, for fresh adapters; None trains all weights
    seed    of the adapters' first weights
    frozen  for sampling: nothing is trained, so there is no reference
    """
    if frozen:
        return model, None
    if lora is not None:
        return with_adapters(model, lora, seed), None
    return model, frozen_copy(model)


class Policy:
    """A model under training, and the reference policy it is compared with."""

    blocks = "blocks"  # the model's list of like blocks, which `compile_blocks` compiles

    def __init__(self, model: nn.Module, reference: nn.Module | None = None):
        """`model` bare, or a PEFT model around it; `reference` a frozen copy, None to switch adapters off."""
        self.model = model
        self._policy: nn.Module = model
        self._reference = reference
        base = getattr(model, "get_base_model", lambda: model)()
        self.config: Any = base.config

    def route_through(self, wrapped: nn.Module) -> None:
        """Send the policy's forwards through accelerate's wrapper of `model`, which synchronises processes."""
        self._policy = wrapped

    def compile_blocks(self, mode: str) -> None:
        """See `Backbone`. Blocks are alike, so a graph that is compiled for one serves all."""
        # A graph for each: with gradient or without, one row or several, with a mask or without, policy or reference.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        for model in (self.model, self._reference):
            for name, module in model.named_modules() if model else ():
                if isinstance(module, nn.ModuleList) and name.split(".")[-1] == self.blocks:
                    for block in module:
                        block.compile(backend=COMPILER, mode=mode)

    def save(self, folder: Path) -> None:
        """Write what is trained, in the format of its library; see `Backbone`."""
        self.model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]

    def prepare_decoder(self) -> None:
        """See `Backbone`: nothing to load, unless a subclass says so."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def on_device(self, prompts: Prompts) -> Prompts:
        """The prompts, where the model is."""
        return Prompts(*(t.to(self.device) for t in prompts))

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside this context forwards are the frozen reference policy's."""
        if self._reference is None:
            with getattr(self.model, "disable_adapter", nullcontext)():
                yield
            return
        policy, self._policy = self._policy, self._reference
        try:
            yield
        finally:
            self._policy = policy
