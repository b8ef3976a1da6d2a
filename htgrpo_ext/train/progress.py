"""What a person sees while training: one line with stage, reward and time left, or plain lines without a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from htgrpo_ext.settings import RunSettings


@contextmanager
def counted(title: str, total: int, unit: str, enabled: bool) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, elsewhere a line for every tenth; what it yields is called once per unit that is done."""
    console = Console(quiet=not enabled)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(16),
        TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {unit}"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not enabled or not console.is_terminal,
    )
    task, done = bar.add_task(title, total=total), 0

    def advance() -> None:
        nonlocal done
        done += 1
        bar.advance(task)
        if not console.is_terminal and (done * 10 // total != (done - 1) * 10 // total or done == 1):
            console.print(f"{title}  {done}/{total} {unit}", highlight=False, markup=False)

    with bar:
        yield advance


class TrainingProgress:
    """A progress bar on a terminal; elsewhere a line for every tenth of the cycles. Silent when not `enabled`."""

    def __init__(self, settings: RunSettings, enabled: bool):
        self.cycles, self.updates = settings.loop.cycles, settings.loop.updates_per_rollout
        self.console = Console(quiet=not enabled)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(16),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            TimeRemainingColumn(compact=True),
            expand=True,  # the note takes what the others leave, so that the bar stays at 80 columns
            console=self.console,
            disable=not enabled or not self.console.is_terminal,
        )
        self._training: TaskID | None = None
        self._note = ""

    def __enter__(self) -> "TrainingProgress":
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def evaluating(self, name: str, total: int) -> TaskID:
        """Start the bar of an evaluation of `total` images."""
        if not self.console.is_terminal:
            self.console.print(f"evaluating the {name} model: {total} images")
        return self.bar.add_task(f"evaluate {name}", total=total, note="images")

    def advance(self, task: TaskID, count: int) -> None:
        self.bar.advance(task, count)

    def update(self, k: int, stage: str) -> None:
        """Update k of the current cycle is about to run."""
        self.bar.update(self._bar(), note=f"{stage} {k + 1}/{self.updates} │ {self._note}")

    def _bar(self) -> TaskID:
        if self._training is None:
            self._training = self.bar.add_task("train", total=self.cycles, note="")
        return self._training

    def cycle(self, record: dict) -> None:
        """A cycle is done; `record` is its metrics."""
        mean, std = record["reward_mean"], record["reward_std"]
        self._note = (
            f"reward {'none' if mean is None else f'{mean:.3f} ±{std:.2f}'}"
            f" │ no spread {record['zero_std_groups']}/{record['groups']}"
        )
        if record["failed_groups"]:
            self._note += f" │ groups lost {record['failed_groups']}/{record['groups']}"
            self.console.print(f"cycle {record['cycle'] + 1}: {record['failure']}", highlight=False, markup=False)
        done = record["cycle"] + 1
        self.bar.update(self._bar(), completed=done)
        if not self.console.is_terminal and (done * 10 // self.cycles != (done - 1) * 10 // self.cycles or done == 1):
            seconds = sum(record["seconds"].values())
            self.console.print(f"cycle {done}/{self.cycles}  {self._note}  {seconds:.1f} s", highlight=False)
