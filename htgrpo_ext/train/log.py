"""Metrics: to metrics.jsonl always, to TensorBoard by default, to wandb by option."""

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from htgrpo_ext.errors import UserError
from htgrpo_ext.settings import RunSettings


def flatten(tree: dict, separator: str, prefix: str = "") -> dict:
    """{"loop": {"cycles": 3}} as {"loop.cycles": 3} with separator "."."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, separator, f"{name}{separator}") if isinstance(value, dict) else {name: value}
    return flat


def finite_or_none(value: Any) -> Any:
    """A number that is not finite as None: JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_training(record: dict) -> bool:
    """Whether a record is of an optimizer step that was taken."""
    return record["kind"] == "update" and not record.get("skipped")


def cycles_behind(record: dict) -> int:
    """How many cycles were done when a record was written, its own included."""
    return record["cycles_done"] if record["kind"] == "eval" else record["cycle"] + 1


class MetricsLog:
    """Writes records on the main process, and nothing on the others (`enabled` is False there)."""

    def __init__(self, settings: RunSettings, enabled: bool):
        """Raises UserError if wandb is asked for and not installed."""
        if settings.log.wandb and find_spec("wandb") is None:
            raise UserError("log.wandb is on, but wandb is not installed (pip install wandb)")
        self.settings, self.enabled = settings, enabled
        self.path: Path = settings.folder / "metrics.jsonl"
        self.steps_taken = 0  # optimizer steps in the log, skipped ones not counted
        self.evaluated: set[int] = set()  # cycles done at each evaluation in the log
        self._file: IO[str] | None = None
        self._board = self._wandb = None

    def open(self, from_cycle: int) -> None:
        """Open the log. A resumed run first drops what was logged after its checkpoint."""
        if not self.enabled:
            return
        kept = []
        if from_cycle and self.path.exists():
            for line in self.path.read_text(errors="replace").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # half a line, of a cycle that was killed and will run again
                    continue
                if cycles_behind(record) <= from_cycle:
                    kept.append(line + "\n")
                    self._count(record)
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.rename(self.path)
        self._file = self.path.open("a")
        if self.settings.log.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            first_step = from_cycle * self.settings.loop.updates_per_rollout + 1
            self._board = SummaryWriter(str(self.settings.folder / "tensorboard"), purge_step=first_step)
        if self.settings.log.wandb:
            self._wandb = self._open_wandb(from_cycle)

    def _open_wandb(self, from_cycle: int) -> Any:
        """A wandb run; a resumed run goes on in its own."""
        import wandb  # pyright: ignore[reportMissingImports]  # an extra

        noted = self.settings.folder / "wandb-id"
        given: dict[str, Any] = {}
        if from_cycle and noted.exists():
            given = {"id": noted.read_text().strip(), "resume": "allow"}
        config = self.settings.model_dump(mode="json")
        opened = wandb.init(project="htgrpo", name=self.settings.run_name, config=config, **given)
        noted.write_text(opened.id)
        return opened

    def write(self, record: dict, step: int) -> None:
        """Write a record as a line of metrics.jsonl, and its numbers as scalars at optimizer step `step`."""
        if self._file is None:
            return
        record = {key: finite_or_none(value) for key, value in record.items()}
        self._count(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        numbers = {key: value for key, value in flatten(record, "/").items() if isinstance(value, int | float)}
        if self._board:
            for key, value in numbers.items():
                self._board.add_scalar(f"{record['kind']}/{key}", value, step)
        if self._wandb:
            self._wandb.log({f"{record['kind']}/{key}": value for key, value in numbers.items()}, step=step)

    def write_picture(self, name: str, levels_HW3: NDArray, step: int) -> None:
        """Show a picture of uint8 levels in TensorBoard and wandb, at optimizer step `step`."""
        if self._board:
            self._board.add_image(name, levels_HW3, step, dataformats="HWC")
        if self._wandb:
            import wandb  # pyright: ignore[reportMissingImports]  # an extra

            self._wandb.log({name: wandb.Image(levels_HW3)}, step=step)

    def _count(self, record: dict) -> None:
        self.steps_taken += is_training(record)
        if record["kind"] == "eval":
            self.evaluated.add(record["cycles_done"])

    def close(self) -> None:
        """Close the file, TensorBoard and wandb."""
        for sink in (self._file, self._board):
            if sink:
                sink.close()
        if self._wandb:
            self._wandb.finish()
