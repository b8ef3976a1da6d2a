"""Prompts that are none of the run's, scored by the run's rewards while it trains: of GenEval's kind, or with texts.

They are no benchmark: nothing is judged before and after training.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from htgrpo_ext.benchmarks.base import Evaluation
from htgrpo_ext.section import Cycles


class HeldOut(Evaluation):
    name: Literal["held-out"]
    every: Cycles  # pyright: ignore[reportGeneralTypeIssues]  # required here
    num_prompts: Annotated[int, Field(gt=0, le=1_000)]
    exclude: Path  # GenEval's own prompts, which are left out

    title = "Held-out prompts"

    @property
    def num_held_out(self) -> int:
        return self.num_prompts

    def held_out(self, trained: Iterable[dict]) -> list[dict]:
        from htgrpo_ext.prompts.geneval import held_out_set, read_benchmark

        return held_out_set(self.num_prompts, self.seed, [*read_benchmark(self.exclude, "eval.exclude"), *trained])


class HeldOutTexts(Evaluation):
    """Prompts with texts of words that no text-rendering prompt of ours trains on."""

    name: Literal["held-out-texts"]
    every: Cycles  # pyright: ignore[reportGeneralTypeIssues]  # required here
    num_prompts: Annotated[int, Field(gt=0, le=1_000)]

    title = "Held-out texts"

    @property
    def num_held_out(self) -> int:
        return self.num_prompts

    def held_out(self, trained: Iterable[dict]) -> list[dict]:
        from htgrpo_ext.prompts.text_rendering import held_out_texts

        return held_out_texts(self.num_prompts, self.seed, trained)
