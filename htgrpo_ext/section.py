"""The base class of all sections of the settings, and the type of a section that is chosen by name."""

from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """One mapping of the YAML files: unknown keys are refused, and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def by_name(sections: Sequence[type[Section]]) -> dict[str, type[Section]]:
    """The sections of a registry by the literal that their field `name` allows."""
    return {get_args(section.model_fields["name"].annotation)[0]: section for section in sections}


def one_of(sections: Sequence[type[Section]]) -> Any:
    """The type of a field that holds one of the sections, chosen by its `name`."""
    return Annotated[Union[tuple(sections)], Field(discriminator="name")]  # noqa: UP007, made of what exists
