"""Settings of one source of the prompts that a run trains on."""

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from htgrpo_ext.section import Positive, Section


class PromptSource(Section):
    format: Literal["micro", "geneval", "text", "dataset"]
    path: Path | None = None
    column: str = "prompt"
    weight: Positive = 1.0

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> Self:
        if (self.path is None) != (self.format == "micro"):
            raise ValueError(f"format {self.format} takes {'no' if self.format == 'micro' else 'a'} path")
        return self
