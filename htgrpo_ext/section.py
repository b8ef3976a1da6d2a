"""The base class of all sections of the settings, and the type of a section that is chosen by name."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

# Every number has a bound: beyond it a run overflows, hangs or runs out of memory instead of failing with a line.
LARGEST = 1e9  # a weight times a scale times a score is then finite in float32
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what both numpy and torch take
Cycles = Annotated[int, Field(gt=0, le=1_000_000)]  # a thousand times a published run
MOST_UPDATES = 256  # K: the views of all K updates are held at once, and the paper has 8
Updates = Annotated[int, Field(gt=0, le=MOST_UPDATES)]
Rows = Annotated[int, Field(gt=0, le=65_536)]  # prompts, images or rows of a batch; published runs have 128
Tokens = Annotated[int, Field(gt=0, le=4_096)]  # LLaDA's context, and the tokens of a picture of 1,024 x 1,024 pixels
Seconds = Annotated[float, Field(gt=0, le=86_400)]  # a day


def _rows_or_auto(value: Any) -> int | Literal["auto"]:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 65_536):
        return value
    raise ValueError("must be auto, or a whole number from 1 to 65536")


RowsOrAuto = Annotated[int | Literal["auto"], PlainValidator(_rows_or_auto)]  # auto: as many rows as the memory holds


def _folder_name(name: str) -> str:
    wrong = re.search(r"[/\\\x00-\x1f\x7f-\x9f]", name) or name.startswith(".") or not name.strip()
    if wrong or len(name.encode()) > 100:  # a folder and files beside it are called so, with endings of their own
        raise ValueError("must be a folder's name: no / or \\, no dot in front, at most 100 bytes")
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]


class Section(BaseModel):
    """One mapping of the YAML files: unknown keys and numbers that are not finite are refused; values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def by_name(sections: Sequence[type[Section]]) -> dict[str, type[Section]]:
    """The sections of a registry by the literal that their field `name` allows."""
    return {get_args(section.model_fields["name"].annotation)[0]: section for section in sections}


def one_of(sections: Sequence[type[Section]]) -> Any:
    """The type of a field that holds one of the sections, chosen by its `name`."""
    return Annotated[Union[tuple(sections)], Field(discriminator="name")]  # noqa: UP007, the members are not known here
