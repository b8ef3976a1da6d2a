"""The checkpoints of MaskGRPO's loop: folders checkpoint-STEPS, with a marker once they are complete."""

import json
import os
import re
from pathlib import Path

from htgrpo_ext.train.checkpoint import damaged, digests, refuse_damage

COMPLETE = "complete"  # written last, with a digest of every other file
NAME = re.compile(r"checkpoint-(\d+)")


def steps_done(checkpoint: Path) -> int | None:
    """Optimizer steps behind a checkpoint, from its name; None if it is no checkpoint's name."""
    match = NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def complete_checkpoints(folder: Path, updates_per_rollout: int) -> list[tuple[int, Path]]:
    """Cycles done and folder of each complete checkpoint, oldest first."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return sorted((steps // updates_per_rollout, path) for path in whole if (steps := steps_done(path)) is not None)


def mark_complete(checkpoint: Path) -> None:
    """Write the marker of a checkpoint whose files are all there."""
    partial = checkpoint / f".{COMPLETE}"
    partial.write_text(json.dumps(digests(checkpoint)))
    os.replace(partial, checkpoint / COMPLETE)


def refuse_damaged(checkpoint: Path) -> None:
    """Raise UserError naming a file that is missing or not as it was written."""
    try:
        expected = dict(json.loads((checkpoint / COMPLETE).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise damaged(checkpoint, f"{COMPLETE} cannot be read") from error
    refuse_damage(checkpoint, expected, COMPLETE)
