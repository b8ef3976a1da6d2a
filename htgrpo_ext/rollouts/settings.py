"""Settings of rollouts, and of the images that a benchmark's scorers judge."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from htgrpo_ext.section import NonNegative, Rows, Section, Seed, Share, Tokens


class Sampling(Section):
    """How tokens are drawn.

    guidance_interval  the part of the denoising that has guidance: step t of T if from <= t/T < to. None: all of it
    """

    sampler: Literal["emerge", "maskgit", "maskgit-constant", "maskgit-amused"]
    steps: Tokens
    guidance: NonNegative
    guidance_interval: tuple[Share, Share] | None = None
    temperature: NonNegative

    @model_validator(mode="after")
    def _some_step_is_guided(self) -> Self:
        if self.guidance and not self.guided_steps:
            raise ValueError(f"guidance_interval has none of the {self.steps} steps in it (from <= t/T < to)")
        return self

    @property
    def guided_steps(self) -> list[int]:
        """The steps that have guidance, of 0..T-1."""
        begin, end = self.guidance_interval or (0.0, 1.0)
        return [t for t in range(self.steps) if begin <= t / self.steps < end] if self.guidance else []


class Reuse(Section):
    """Keys and values of one step serve the following ones; see `core/reuse.py`.

    refresh  every so many steps all is computed; 1: always
    """

    refresh: Tokens


class RolloutSettings(Sampling):
    """The rollouts that a method trains on. Evaluations draw as they do, but without `reuse`."""

    prompts_per_cycle: Rows
    rollouts_per_prompt: Annotated[int, Field(ge=2, le=65_536)]
    reuse: Reuse | None = None

    @model_validator(mode="after")
    def _reuse_knows_what_appears(self) -> Self:
        if self.refresh > 1 and self.sampler != "emerge":
            raise ValueError("reuse needs the sampler emerge: the others draw all masked tokens to choose some")
        return self

    @property
    def refresh(self) -> int:
        return self.reuse.refresh if self.reuse else 1


class BenchmarkSampling(Sampling):
    """The section `sampling`: a model's images are judged as its authors sample, which need not be as it is trained."""

    seed: Seed  # of the noise; not the run's, so that all models of all runs see the same
