"""How many rows go through the model at once: a number, or as many as its memory holds."""

from collections.abc import Callable
from typing import Literal, TypeVar

import torch

AUTO = {"cpu": 32, "accelerator": 64}  # rows that `auto` begins with; more do not make a forward of 1,024 tokens faster
Result = TypeVar("Result")


class BatchSize:
    """Rows per forward.

    rows  a number, which stays, or "auto": begins with `AUTO`, and is halved whenever a forward or a backward runs
          out of the accelerator's memory. One row that does not fit is an error all the same
    """

    def __init__(self, rows: int | Literal["auto"]):
        self._rows = rows
        self._found: int | None = None
        self._largest = 1  # batch of the work that `retried` does

    @property
    def is_auto(self) -> bool:
        return self._rows == "auto"

    def on(self, device: torch.device) -> int:
        """Rows per forward on this device."""
        if isinstance(self._rows, int):
            return self._rows
        return self._found or AUTO["cpu" if device.type == "cpu" else "accelerator"]

    def batches(
        self, count: int, device: torch.device, work: Callable[[slice], Result], most: int | None = None
    ) -> list[Result]:
        """What `work` returns for each batch of `count` rows, in order. A batch that does not fit is tried in halves.

        most  fewer rows than a batch may have, for speed; batches are then of one size as nearly as possible

        Raises torch.OutOfMemoryError if one row does not fit, or if the number of rows is fixed.
        """
        results, start = [], 0
        while start < count:
            rows, left = self.on(device), count - start
            tried = min(rows, left) if most is None else -(-left // -(-left // min(rows, most)))
            try:
                results.append(work(slice(start, start + tried)))
            except torch.OutOfMemoryError:
                if not self._halved(tried):
                    raise
            else:
                start += tried
                self._largest = max(self._largest, tried)
                continue
            free_memory()  # after `except`: the error holds the tensors that did not fit
        return results

    def retried(self, work: Callable[[], Result], undo: Callable[[], None]) -> Result:
        """What `work` returns: forwards in batches, and their backward. If memory ends behind the forwards, it is done
        again in smaller batches.

        undo  takes back what a broken `work` has left

        Raises torch.OutOfMemoryError as `batches` does.
        """
        while True:
            self._largest = 1
            try:
                return work()
            except torch.OutOfMemoryError:
                if not self._halved(self._largest):
                    raise
            undo()
            free_memory()

    def _halved(self, rows: int) -> bool:
        """Half of `rows` from now on; False if that cannot be."""
        if not self.is_auto or rows == 1:
            return False
        self._found = rows // 2
        return True


def free_memory() -> None:
    """Give what the allocator holds back to the accelerator."""
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
