"""Settings of rollouts, and of the images that a benchmark's scorers judge."""

from typing import Annotated, Literal

from pydantic import Field

from htgrpo_ext.section import NonNegative, Rows, Section, Seed, Tokens


class Sampling(Section):
    """How tokens are drawn."""

    sampler: Literal["emerge", "maskgit", "maskgit-constant", "maskgit-amused"]
    steps: Tokens
    guidance: NonNegative
    temperature: NonNegative


class RolloutSettings(Sampling):
    prompts_per_cycle: Rows
    rollouts_per_prompt: Annotated[int, Field(ge=2, le=65_536)]


class BenchmarkSampling(Sampling):
    """The section `sampling`: a model's images are judged as its authors sample, which need not be as it is trained."""

    seed: Seed  # of the noise; not the run's, so that all models of all runs see the same
