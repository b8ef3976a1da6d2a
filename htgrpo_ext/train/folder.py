"""The folder of a run: whether it may be used, what it continues from, and how it is made ready."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from htgrpo_ext.config import load_settings, save_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.log import flatten
from htgrpo_ext.train.run import Run

# What may change when a run is continued. Of rewards: where they run and how patiently they are asked.
MAY_CHANGE = {"name", "label", "out", "loop.cycles", "loop.save_steps"} | {
    f"reward.{key}" for key in ("on_failure", "max_failed_share", "retries", "deadline", "overlap")
}
TERM_MAY_CHANGE = {"url", "protocol", "device", "batch_size", "timeout"}


def refuse_other_settings(settings: RunSettings, saved: RunSettings) -> None:
    """Raise UserError if a run would be continued with settings that make it another run. More cycles are fine."""
    ignored = {"reward": {"terms": {"__all__": TERM_MAY_CHANGE}}}
    now, then = (flatten(s.model_dump(mode="json", exclude=ignored), ".") for s in (settings, saved))
    changed = [key for key in now.keys() | then.keys() if now.get(key) != then.get(key)]
    changed = sorted(key for key in changed if key not in MAY_CHANGE and not key.startswith("log."))
    if changed:
        key = changed[0]
        raise UserError(
            f"{settings.folder}: the run there has {key} {then.get(key)}, not {now.get(key)}; "
            "continue it with the settings of its config.yaml, or give another `out`"
        )


def newest_checkpoint(settings: RunSettings, checkpoints: Sequence[Path], resume: bool) -> Path | None:
    """The checkpoint to continue from, None to begin; `checkpoints` are the run's complete ones, oldest first.

    Raises UserError if there is a run already (without `resume`), or one with other settings.
    """
    if checkpoints and not resume:
        raise UserError(f"{settings.folder}: a run is there already; continue it with --resume, or give another `out`")
    if checkpoints:
        refuse_other_settings(settings, load_settings([settings.folder / "config.yaml"]))
    return checkpoints[-1] if checkpoints else None


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
