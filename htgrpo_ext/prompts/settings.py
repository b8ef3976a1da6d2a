"""Settings of one source of the prompts that a run trains on."""

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from htgrpo_ext.section import Positive, Section

SPLITS = {  # of a dataset, each with the words that name it in a file's or folder's name, as Hugging Face has them
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

WORLDS = ("micro", "words")  # their prompts are not in a file


class PromptSource(Section):
    format: Literal["micro", "words", "geneval", "text-rendering", "text", "jsonl", "dataset"]
    path: Path | None = None
    column: str = "prompt"
    split: Literal["train", "validation", "test"] | None = None
    weight: Positive = 1.0

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> Self:
        if (self.path is None) != (self.format in WORLDS) and self.format != "text-rendering":  # with or without
            raise ValueError(f"format {self.format} takes {'no' if self.format in WORLDS else 'a'} path")
        if self.split and self.format != "dataset":
            raise ValueError(f"format {self.format} has no split")
        return self
