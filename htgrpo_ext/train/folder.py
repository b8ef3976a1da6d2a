"""The folder of a run: who may use it, what the run continues from, and how it is made ready."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from htgrpo_ext.config import load_settings, save_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.files import held
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.log import flatten
from htgrpo_ext.train.run import Run

MARKER = ".htgrpo-run"  # in every run's folder; locked while the run is at work
# What may change when a run is continued. Of rewards: where they run and how patiently they are asked.
MAY_CHANGE = {"name", "label", "out", "loop.cycles", "loop.save_steps", "loop.save_minutes"} | {
    f"reward.{key}" for key in ("on_failure", "max_failed_share", "retries", "deadline", "overlap")
}
MAY_GROW = {"model.prompt_length"}  # room for longer prompts; the others stay the same, because pads are hidden
TERM_MAY_CHANGE = {"url", "protocol", "device", "batch_size", "timeout"}


def is_first_process() -> bool:
    """Whether this is the main process, before accelerate is asked; launchers number the processes in RANK."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def held_folder(settings: RunSettings, loop: str) -> Iterator[None]:
    """Make the run's folder, and hold it alone until the run ends, however it ends.

    loop  "native" or "upstream"; the checkpoints of one mean nothing to the other

    Raises UserError if the folder cannot be written, holds something that is not a run's, or a run by the other loop,
    or if another run is at work there.
    """
    if not is_first_process():
        yield
        return
    folder = settings.folder

    def refuse_other_loop(before: dict) -> None:
        if before.get("loop", loop) != loop and any((folder / "checkpoints").glob("*")):
            raise UserError(
                f"{folder}: the run there was made by --loop {before['loop']}; use that, or give another `out`"
            )

    with held(folder, MARKER, "run", "run", "give another `out`", {"loop": loop}, refuse_other_loop):
        yield


def refuse_other_settings(settings: RunSettings, saved: RunSettings) -> None:
    """Raise UserError if a run would be continued with settings that make it another run. More cycles are fine."""
    ignored = {"sampling": True, "reward": {"terms": {"__all__": TERM_MAY_CHANGE}}}  # training does not read `sampling`
    now, then = (flatten(s.model_dump(mode="json", exclude=ignored), ".") for s in (settings, saved))
    changed = [key for key in now.keys() | then.keys() if now.get(key) != then.get(key)]
    grown = {key for key in MAY_GROW & now.keys() & then.keys() if now[key] > then[key]}
    if now.get("model.attention") == "as-maskgrpo":  # there pads are visible
        grown = set()
    changed = sorted(key for key in changed if key not in MAY_CHANGE | grown and not key.startswith("log."))
    if changed:
        key = changed[0]
        raise UserError(
            f"{settings.folder}: the run there has {key} {then.get(key)}, not {now.get(key)}; "
            "continue it with the settings of its config.yaml, or give another `out`"
        )


def newest_checkpoint(settings: RunSettings, checkpoints: Sequence[tuple[int, Path]], resume: bool) -> Path | None:
    """The checkpoint to continue from, None to begin. Says so if it was asked to continue, and there is nothing.

    checkpoints  (cycles done, folder) of the run's complete ones, oldest first

    Raises UserError if there is a run already (without `resume`), one with other settings, or with more cycles done.
    """
    if not checkpoints:
        if resume and is_first_process():
            print(f"{settings.folder}: no checkpoint to resume from, so the run starts at its first cycle")
        return None
    if not resume:
        raise UserError(f"{settings.folder}: a run is there already; continue it with --resume, or give another `out`")
    refuse_other_settings(settings, load_settings([settings.folder / "config.yaml"]))
    done, newest = checkpoints[-1]
    if done > settings.loop.cycles:
        raise UserError(
            f"{settings.folder}: the run there has done {done} cycles, more than loop.cycles {settings.loop.cycles}; "
            f"set loop.cycles to {done} or more"
        )
    return newest


def open_folder(run: Run, cycle: int) -> None:
    """Make the run's folder ready for cycle `cycle`: write the settings, open the log, drop stale evaluations."""
    folder = run.settings.folder
    run.processes.wait_for_everyone()  # every process has looked at the folder before one writes to it
    if run.processes.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        if cycle == 0:  # the evaluation of an earlier attempt may have had other settings
            shutil.rmtree(folder / "eval", ignore_errors=True)
        save_settings(run.settings, folder / "config.yaml")
    run.log.open(from_cycle=cycle)
    run.processes.wait_for_everyone()  # all see the folder as it is now
