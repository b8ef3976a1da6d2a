"""Settings of rollouts."""

from typing import Annotated, Literal

from pydantic import Field

from htgrpo_ext.section import NonNegative, Rows, Section, Tokens


class RolloutSettings(Section):
    prompts_per_cycle: Rows
    rollouts_per_prompt: Annotated[int, Field(ge=2, le=65_536)]
    sampler: Literal["emerge", "maskgit", "maskgit-constant"]
    steps: Tokens
    guidance: NonNegative
    temperature: NonNegative
