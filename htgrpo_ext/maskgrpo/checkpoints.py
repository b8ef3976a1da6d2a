"""The checkpoints of MaskGRPO's loop: folders checkpoint-STEPS, with a marker once they are complete."""

from pathlib import Path

COMPLETE = "complete"  # written last: a folder without it was not written to its end


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE}")), key=steps_done)


def steps_done(checkpoint: Path) -> int:
    """Optimizer steps behind a checkpoint, from its name."""
    return int(checkpoint.name.rpartition("-")[2])
