"""Metrics: to metrics.jsonl always, to TensorBoard by default, to wandb by option."""

import json
from pathlib import Path
from typing import IO

from htgrpo_ext.errors import UserError
from htgrpo_ext.settings import RunSettings


def flatten(tree: dict, separator: str, prefix: str = "") -> dict:
    """{"loop": {"cycles": 3}} as {"loop.cycles": 3} with separator "."."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, separator, f"{name}{separator}") if isinstance(value, dict) else {name: value}
    return flat


class MetricsLog:
    """Writes records on the main process, and nothing on the others (`enabled` is False there)."""

    def __init__(self, settings: RunSettings, enabled: bool):
        self.settings, self.enabled = settings, enabled
        self.path: Path = settings.folder / "metrics.jsonl"
        self._file: IO[str] | None = None
        self._board = self._wandb = None

    def open(self, from_cycle: int) -> None:
        """Open the log. A resumed run first drops what was logged after its checkpoint."""
        if not self.enabled:
            return
        kept = []
        if from_cycle and self.path.exists():
            for line in self.path.read_text().splitlines(keepends=True):
                # A kill can leave half a line at the end, of a cycle that will run again.
                if line.endswith("\n") and json.loads(line)["cycle"] < from_cycle:
                    kept.append(line)
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.rename(self.path)
        self._file = self.path.open("a")
        if self.settings.log.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            first_step = from_cycle * self.settings.loop.updates_per_rollout + 1
            self._board = SummaryWriter(str(self.settings.folder / "tensorboard"), purge_step=first_step)
        if self.settings.log.wandb:
            try:
                import wandb
            except ImportError as error:
                raise UserError("log.wandb is on, but wandb is not installed (pip install wandb)") from error
            self._wandb = wandb.init(
                project="htgrpo", name=self.settings.run_name, config=self.settings.model_dump(mode="json")
            )

    def write(self, record: dict, step: int) -> None:
        """Write a record as a line of metrics.jsonl, and its numbers as scalars at optimizer step `step`."""
        if self._file is None:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        numbers = {key: value for key, value in flatten(record, "/").items() if isinstance(value, int | float)}
        if self._board:
            for key, value in numbers.items():
                self._board.add_scalar(f"{record['kind']}/{key}", value, step)
        if self._wandb:
            self._wandb.log({f"{record['kind']}/{key}": value for key, value in numbers.items()}, step=step)

    def close(self) -> None:
        for sink in (self._file, self._board):
            if sink:
                sink.close()
        if self._wandb:
            self._wandb.finish()
