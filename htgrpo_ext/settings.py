"""All settings of a run, composed of the sections that its parts own. The files in configs/ explain each field.

Nothing here imports torch. Each field is checked on its own; `problems` checks the fields against each other.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from htgrpo_ext.backbones import BACKBONES
from htgrpo_ext.backbones.settings import ModelSection
from htgrpo_ext.benchmarks import EVALUATIONS, AnyEvaluation, Benchmark
from htgrpo_ext.benchmarks.micro import MicroEval
from htgrpo_ext.methods import METHODS
from htgrpo_ext.methods.base import Method
from htgrpo_ext.prompts.settings import PromptSource
from htgrpo_ext.rewards.settings import RewardSettings
from htgrpo_ext.rollouts.settings import BenchmarkSampling, RolloutSettings
from htgrpo_ext.section import (
    Cycles,
    FolderName,
    NonNegative,
    Positive,
    Rows,
    RowsOrAuto,
    Section,
    Seed,
    Updates,
    by_name,
    one_of,
)

# The sections that their `name` chooses, each with its choices.
CHOICES: dict[str, dict[str, type[Section]]] = {
    "method": by_name(METHODS),
    "model": by_name(BACKBONES),
    "eval": by_name(EVALUATIONS),
}
HELD_OUT = 40  # prompts per task of the micro world that are not trained on, where the run has no MicroEval

if TYPE_CHECKING:
    AnyModel = ModelSection
    AnyMethod = Method
else:
    AnyModel, AnyMethod = one_of(BACKBONES), one_of(METHODS)

MOST_TOKENS = 2**22  # of all rollouts of a cycle: 32 times those of the paper's runs
Beta = Annotated[float, Field(ge=0, lt=1)]


class LoopSettings(Section):
    cycles: Cycles
    updates_per_rollout: Updates
    micro_batches: Rows
    batch_size: RowsOrAuto
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)]  # AdamW moves each weight by about this much a step
    warmup_updates: Annotated[int, Field(ge=0, le=256_000_000)]  # the optimizer steps of the longest run
    adam_betas: tuple[Beta, Beta]
    weight_decay: NonNegative
    max_grad_norm: Positive
    clip_epsilon: Annotated[float, Field(gt=0, lt=1)]
    kl_coefficient: NonNegative
    save_steps: Cycles
    save_minutes: Positive | None = 30.0


class LogSettings(Section):
    tensorboard: bool
    wandb: bool


class RunSettings(Section):
    """One run.

    name   of the run; made of model, label and seed if it is not given
    label  of the method in that name and in comparisons, for ablations and AGRPO; the method's name if it is not given
    out    folder of the run; runs/NAME if it is not given
    """

    name: FolderName | None = None
    label: FolderName | None = None
    seed: Seed
    out: Path | None = None
    model: AnyModel
    method: AnyMethod
    rollout: RolloutSettings
    loop: LoopSettings
    prompts: list[PromptSource]
    reward: RewardSettings
    eval: AnyEvaluation | None = None  # None: the run is not evaluated
    sampling: BenchmarkSampling | None = None  # of `htgrpo eval generate`; training does not read it
    log: LogSettings

    @field_validator("prompts")
    @classmethod
    def _some_prompts(cls, prompts: list[PromptSource]) -> list[PromptSource]:
        if not prompts:
            raise ValueError("no source of prompts is given")
        return prompts

    @property
    def run_name(self) -> str:
        return self.name or f"{self.model.name}-{self.label or self.method.name}-s{self.seed}"

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / self.run_name

    @property
    def benchmark(self) -> Benchmark | None:
        """What judges the model before and after training, if anything does."""
        return self.eval if isinstance(self.eval, Benchmark) else None

    def same_base(self, other: "RunSettings") -> bool:
        """Whether the base model's evaluation is the same in both runs: model, sampler, prompts, noise, rounding."""

        def read(run: RunSettings) -> tuple:
            return run.model, run.rollout, run.eval, run.loop.batch_size, run.loop.compile

        return read(self) == read(other)

    @property
    def held_out(self) -> int:
        """Prompts per task of the micro world that the run does not train on: MicroEval's, if it has that."""
        return self.eval.prompts_per_task if isinstance(self.eval, MicroEval) else HELD_OUT

    def problems(self, processes: int = 1) -> list[str]:
        """What is wrong between fields, one line each; empty if nothing is."""
        found = self.method.problems(self.loop.updates_per_rollout, self.model.num_image_tokens)
        shares, prompts = processes * self.loop.micro_batches, self.rollout.prompts_per_cycle
        if prompts % shares:
            found.append(
                f"{prompts} prompts a cycle do not divide into {processes} processes x {self.loop.micro_batches} "
                "micro-batches (rollout.prompts_per_cycle, loop.micro_batches)"
            )
        images, tokens = prompts * self.rollout.rollouts_per_prompt, self.model.num_image_tokens
        if images * tokens > MOST_TOKENS:
            found.append(
                f"{images:,} images of {tokens:,} tokens a cycle are too many: a cycle has at most "
                f"{MOST_TOKENS:,} tokens (rollout.prompts_per_cycle, rollout.rollouts_per_prompt)"
            )
        found += self.model.problems()
        found += self.rollout.problems("rollout") + (self.sampling.problems("sampling") if self.sampling else [])
        if self.rollout.refresh > 1 and not self.model.keeps_keys:
            found.append(f"{self.model.name} keeps no keys and values between steps (rollout.reuse)")
        if self.rollout.refresh > 1 and self.loop.compile:
            found.append("compiled blocks cannot keep keys and values; leave out rollout.reuse or loop.compile")
        found += self._inexact_rollouts() if self.method.exact_rollouts else []
        if self.eval and self.eval.world not in (None, self.model.world):
            found.append(
                f"{self.eval.title} reads codes of the {self.eval.world} world, not images of {self.model.name} (eval)"
            )
        for term in self.reward.terms:
            if term.in_process and term.in_process.world not in (None, self.model.world):
                found.append(
                    f"reward `{term.name}` reads codes of the {term.in_process.world} world, not images of "
                    f"{self.model.name} (reward.terms)"
                )
        return found

    def _inexact_rollouts(self) -> list[str]:
        return [
            f"{self.label or self.method.name} takes its ratio in the contexts that tokens were drawn in, so rollouts "
            f"must be exact; leave out rollout.{key}"
            for key in ("guidance_interval", "reuse")
            if getattr(self.rollout, key) is not None
        ]
