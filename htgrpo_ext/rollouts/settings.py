"""Settings of rollouts."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from htgrpo_ext.section import Section


class RolloutSettings(Section):
    prompts_per_cycle: PositiveInt
    rollouts_per_prompt: Annotated[int, Field(ge=2)]
    sampler: Literal["emerge", "maskgit", "maskgit-constant"]
    steps: PositiveInt
    guidance: NonNegativeFloat
    temperature: NonNegativeFloat
