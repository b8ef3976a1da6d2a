"""Settings of rollouts, and of the images that a benchmark's scorers judge."""

from typing import Annotated, Literal

from pydantic import Field

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

    @property
    def guided_steps(self) -> list[int]:
        """The steps that have guidance, of 0..T-1."""
        begin, end = self.guidance_interval or (0.0, 1.0)
        return [t for t in range(self.steps) if begin <= t / self.steps < end] if self.guidance else []

    def problems(self, section: str) -> list[str]:
        """What is wrong between these fields of a section, one line each."""
        if not self.guidance or self.guided_steps:
            return []
        return [f"there is guidance, but none of the {self.steps} steps has it ({section}.guidance_interval)"]


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

    @property
    def refresh(self) -> int:
        return self.reuse.refresh if self.reuse else 1

    def problems(self, section: str) -> list[str]:
        found = super().problems(section)
        if self.refresh > 1 and self.sampler != "emerge":
            why = f"{self.sampler} draws all masked tokens to choose some"
            found.append(f"reuse needs the sampler emerge: {why} ({section}.reuse)")
        return found


class BenchmarkSampling(Sampling):
    """The section `sampling`: a model's images are judged as its authors sample, which need not be as it is trained."""

    seed: Seed  # of the noise; not the run's, so that all models of all runs see the same
