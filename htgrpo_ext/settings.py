"""The whole configuration of a run, as one pydantic model. What each field means stands beside it in configs/.

Everything is checked before anything is loaded; `problems` finds all that no single field can know.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from htgrpo_ext.benchmarks import AnyBenchmark
from htgrpo_ext.benchmarks.micro import MicroEval
from htgrpo_ext.core.sampler import SAMPLERS
from htgrpo_ext.methods import METHODS
from htgrpo_ext.micro import world
from htgrpo_ext.rewards.micro import MICRO_REWARDS
from htgrpo_ext.section import Section

# A block's linear maps in LLaDA's transformer. Here, and not in its module, because settings load no model code.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")

Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
AnyMethod = Annotated[Union[tuple(METHODS.values())], Field(discriminator="name")]  # noqa: UP007, made of what exists
# Rewards that need no server; what the others are made of wants an environment of its own.
IN_PROCESS = ("aesthetic", "clip", *sorted(MICRO_REWARDS))
HELD_OUT = 40  # prompts of each task of the micro world that RL does not see, where no evaluation says how many


class Lora(Section):
    rank: PositiveInt
    alpha: PositiveInt
    dropout: Share
    targets: list[str]


class ModelSection(Section):
    """What every model has; a subclass is one backbone's settings."""

    name: str
    checkpoint: Path
    tuning: Literal["full", "lora"]
    lora: Lora | None = None

    def problems(self) -> list[str]:
        """What is wrong between these fields, one line each."""
        if self.tuning == "lora" and self.lora is None:
            return ["tuning is lora, but there are no LoRA settings (model.tuning, model.lora)"]
        return []


class Micro(ModelSection):
    name: Literal["micro"]

    @property
    def num_image_tokens(self) -> int:
        return world.NUM_IMAGE_TOKENS


class LladaModelSection(ModelSection):
    """What the models on LLaDA's transformer have in common."""

    dtype: Literal["bfloat16", "float32"]
    activation_checkpointing: bool
    prompt_length: Annotated[int, Field(ge=4)]
    vq_checkpoint: Path | None

    def problems(self) -> list[str]:
        targets = self.lora.targets if self.lora else []
        return super().problems() + [
            f"no projection is called `{name}` (model.lora.targets; there are {', '.join(PROJECTIONS)})"
            for name in targets
            if name not in PROJECTIONS
        ]


class Mmada(LladaModelSection):
    name: Literal["mmada"]
    attention: Literal["masked", "as-maskgrpo"]

    @property
    def num_image_tokens(self) -> int:
        return 1024


class Lumina(LladaModelSection):
    name: Literal["lumina"]
    height: Annotated[int, Field(ge=16, multiple_of=16)]
    width: Annotated[int, Field(ge=16, multiple_of=16)]

    @property
    def num_image_tokens(self) -> int:
        return (self.height // 16) * (self.width // 16)


MODELS: dict[str, type[ModelSection]] = {"micro": Micro, "mmada": Mmada, "lumina": Lumina}
Model = Annotated[Union[tuple(MODELS.values())], Field(discriminator="name")]  # noqa: UP007, made of what exists


class RolloutSettings(Section):
    prompts_per_cycle: PositiveInt
    rollouts_per_prompt: Annotated[int, Field(ge=2)]
    sampler: Literal[tuple(SAMPLERS)]
    steps: PositiveInt
    guidance: NonNegativeFloat
    temperature: NonNegativeFloat


class LoopSettings(Section):
    cycles: PositiveInt
    updates_per_rollout: PositiveInt
    micro_batches: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_updates: NonNegativeInt
    adam_betas: tuple[Beta, Beta]
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    clip_epsilon: Annotated[float, Field(gt=0, lt=1)]
    kl_coefficient: NonNegativeFloat
    save_steps: PositiveInt


class PromptSource(Section):
    format: Literal["micro", "geneval", "text", "dataset"]
    path: Path | None = None
    column: str = "prompt"
    weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _has_what_it_reads(self) -> "PromptSource":
        if (self.path is None) != (self.format == "micro"):
            raise ValueError(f"format {self.format} takes {'no' if self.format == 'micro' else 'a'} path")
        return self


class RewardTerm(Section):
    name: str
    weight: PositiveFloat
    scale: PositiveFloat = 1.0
    url: str | None = None
    protocol: Literal["json", "reward-server-pickle"] = "json"
    options: dict[str, str | int | float | bool] = {}
    device: str | None = None
    batch_size: PositiveInt = 16
    timeout: PositiveFloat = 60.0

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name == "reward":
            raise ValueError(f"`{name}` cannot be a reward's name (small letters, digits, - and _; not `reward`)")
        return name

    @model_validator(mode="after")
    def _runs_somewhere(self) -> "RewardTerm":
        if self.url is None and self.name not in IN_PROCESS:
            raise ValueError(f"reward `{self.name}` needs the url of a server (in process: {', '.join(IN_PROCESS)})")
        if self.url is not None and not re.match(r"https?://[^/]", self.url):
            raise ValueError(f"url must begin with http:// or https:// (got {self.url!r})")
        if self.url is None and self.protocol != "json":
            raise ValueError(f"protocol {self.protocol} needs the url of a server")
        if (self.options or self.device) and (self.url is not None or self.name in MICRO_REWARDS):
            raise ValueError(f"options and device are of a model in this process, which reward `{self.name}` has not")
        return self


class RewardSettings(Section):
    mixing: Literal["sum", "normalise-then-sum"]
    on_failure: Literal["drop-group", "stop"]
    max_failed_share: Share
    retries: NonNegativeInt
    deadline: PositiveFloat
    overlap: bool
    terms: list[RewardTerm]

    @field_validator("terms")
    @classmethod
    def _names_differ(cls, terms: list[RewardTerm]) -> list[RewardTerm]:
        if not terms:
            raise ValueError("no reward is given")
        names = [term.name for term in terms]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"reward `{twice[0]}` is given twice")
        return terms


class LogSettings(Section):
    tensorboard: bool
    wandb: bool


class RunSettings(Section):
    """One run. `out` is its folder; `name` is made of model, method and seed when it is not given.

    label  what the method is called in that name, where its own name does not say it: ablations, AGRPO
    """

    name: str | None = None
    label: str | None = None
    seed: NonNegativeInt
    out: Path | None = None
    model: Model
    method: AnyMethod
    rollout: RolloutSettings
    loop: LoopSettings
    prompts: list[PromptSource]
    reward: RewardSettings
    eval: AnyBenchmark | None = None  # None: the run is not evaluated
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
    def held_out(self) -> int:
        """Prompts of each task of the micro world that RL does not see: MicroEval's, where the run has it."""
        return self.eval.prompts_per_task if isinstance(self.eval, MicroEval) else HELD_OUT

    def problems(self, processes: int = 1) -> list[str]:
        """Everything that is wrong between fields, one line each; empty when all is well."""
        found = self.method.problems(self.loop.updates_per_rollout, self.model.num_image_tokens)
        shares, prompts = processes * self.loop.micro_batches, self.rollout.prompts_per_cycle
        if prompts % shares:
            found.append(
                f"{prompts} prompts a cycle do not divide into {processes} processes x {self.loop.micro_batches} "
                "micro-batches (rollout.prompts_per_cycle, loop.micro_batches)"
            )
        found += self.model.problems()
        if self.eval is not None and self.eval.world not in (None, self.model.name):
            found.append(
                f"{self.eval.title} judges images of the model {self.eval.world} only, not of {self.model.name} "
                "(eval.name, model.name)"
            )
        if self.model.name != "micro":
            found += [
                f"reward `{term.name}` judges the micro world's codes, not images of {self.model.name} (reward.terms)"
                for term in self.reward.terms
                if term.name in MICRO_REWARDS and term.url is None
            ]
        return found
