"""A scorer of a user's file: `--scorer file_scorer.py:Sums`. It notes what it scored, and can kill itself."""

import os
import signal
from pathlib import Path

from htgrpo_ext.imagesets.scorers.base import Scorer
from htgrpo_ext.imagesets.scorers.sums import mean_columns
from htgrpo_ext.imagesets.scores import ScoreLine


class Sums(Scorer):
    """The sum of a picture's bytes."""

    name = "sums"
    title = "Sums"
    metrics = ("sum",)
    incidental = frozenset({"kill_at", "notes"})

    kill_at: int = -1  # when it would score so many more images
    offset: int = 0  # added to every sum
    notes: Path = Path(os.devnull)  # a line for each image that it scored

    def score(self, pictures, work):
        scored = 0
        for item in pictures.items:
            for number, image in enumerate(pictures.load(item)):
                if scored == self.kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                scored += 1
                with self.notes.open("a") as file:
                    file.write(f"{item.key} {number}\n")
                yield ScoreLine(item.key, number, {"sum": float(sum(image.tobytes()) + self.offset)})

    def columns(self, items, lines, about):
        return mean_columns(items, lines, {"sum": "Sum"}, "sum")
