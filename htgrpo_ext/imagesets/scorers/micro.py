"""The micro world's verifier, from pixels, in this process. A picture that the world cannot draw is refused."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.base import Item
from htgrpo_ext.imagesets.columns import Columns
from htgrpo_ext.imagesets.scorers.base import Pictures, Scorer
from htgrpo_ext.imagesets.scorers.sums import task_columns
from htgrpo_ext.imagesets.scores import ScoreLine


class Micro(Scorer):
    name = "micro"
    title = "MicroEval"
    suites = ("microeval",)
    metrics = ("correct", "partial")

    def score(self, pictures: Pictures, work: Path) -> Iterator[ScoreLine]:
        import torch

        from htgrpo_ext.micro.verifier import verify
        from htgrpo_ext.rewards.scorers.micro import read_codes

        for item in pictures.items:
            for number, image in enumerate(pictures.load(item)):
                levels_3HW = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
                try:
                    codes_N = read_codes(levels_3HW)
                except ValueError as error:
                    raise UserError(f"{pictures.root}: image {number} of {item.key}: {error}") from None
                verdict = verify(item.metadata, codes_N.tolist())
                values = {"correct": float(verdict.correct), "partial": verdict.partial}
                yield ScoreLine(item.key, number, values, verdict.reason)

    def columns(self, items: Sequence[Item], lines: Sequence[ScoreLine], about: Mapping) -> Columns:
        return task_columns(items, lines)
