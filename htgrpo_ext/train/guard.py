"""Numbers that are not finite never reach the weights: such an optimizer step is skipped, and counted."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from htgrpo_ext.errors import UserError
from htgrpo_ext.train.processes import gathered

PATIENCE = 3  # skipped steps in a row that stop a run


class WeightsLost(UserError):
    """The weights in memory must not be saved: they are not finite any more, or not those of whole cycles."""


class StepGuard:
    """Watches the steps of an optimizer: all processes take a step, or all skip it.

    It works by hooks on the optimizer, so MaskGRPO's loop and DeepSpeed run into it as the native loop does. A step is
    skipped by dropping the gradients: then neither weights nor moments change.
    """

    def __init__(self):
        self.nothing_to_train = False  # set before a step that no rollout has a part in: skipped, but not counted
        self.skipped_in_cycle = 0
        self._in_a_row = 0
        self._watched: list[Tensor] = []
        self._bad = False

    def protect(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch every step of this optimizer from now on."""
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def watch(self, *values: Tensor) -> None:
        """Losses and the like of the coming step; it is skipped if one is not finite."""
        self._watched += [value.detach() for value in values]

    def close_step(self) -> Literal["taken", "skipped", "idle"]:
        """What became of the optimizer step. Call it once after each."""
        bad, idle, self._bad, self.nothing_to_train = self._bad, self.nothing_to_train, False, False
        if idle:
            return "idle"
        self._in_a_row = self._in_a_row + 1 if bad else 0
        self.skipped_in_cycle += bad
        return "skipped" if bad else "taken"

    def close_cycle(self) -> int:
        """The number of updates that were skipped in the cycle."""
        skipped, self.skipped_in_cycle = self.skipped_in_cycle, 0
        return skipped

    def check(self) -> None:
        """Raise UserError if the last steps were all skipped."""
        if self._in_a_row >= PATIENCE:
            raise UserError(
                f"the last {self._in_a_row} updates were skipped, because the loss or the gradient was not a finite "
                "number; look at loss and ratio_max in metrics.jsonl, and try a lower loop.learning_rate"
            )

    # DeepSpeed calls the optimizer once per group of parameters: what is bad for one group is bad for those after it.

    def _before(self, optimizer: torch.optim.Optimizer, *_) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = all_finite([*self._watched, *(p.grad for p in parameters)])
        self._watched.clear()
        self._bad = self._bad or not everywhere(finite)
        if self._bad or self.nothing_to_train:
            for parameter in parameters:
                parameter.grad = None

    def _after(self, optimizer: torch.optim.Optimizer, *_) -> None:
        if not everywhere(all_finite(p for group in optimizer.param_groups for p in group["params"])):
            raise WeightsLost(
                "the last optimizer step made weights that are not finite numbers; try a lower loop.learning_rate"
            )


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number in them is finite."""
    flags = [tensor.isfinite().all() for tensor in tensors]
    return not flags or bool(torch.stack([flag.to(flags[0].device) for flag in flags]).all())


def everywhere(condition: bool) -> bool:
    """Whether it holds on all processes. All must call it together."""
    return bool(gathered(torch.tensor([condition])).all())
