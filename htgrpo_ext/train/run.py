"""What both loops have in common: the state of a run, its preparation, and the interface of a loop."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from accelerate import PartialState

from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.errors import UserError
from htgrpo_ext.prompts.files import Line
from htgrpo_ext.prompts.sources import PromptSources
from htgrpo_ext.rewards.mix import Rewards
from htgrpo_ext.rewards.scorers import prompt_check
from htgrpo_ext.rewards.settings import RewardSettings
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.guard import StepGuard, everywhere
from htgrpo_ext.train.log import MetricsLog
from htgrpo_ext.train.processes import gathered
from htgrpo_ext.train.progress import TrainingProgress
from htgrpo_ext.train.stop import StopRequest


@dataclass
class Run:
    """What a training run carries from cycle to cycle, in either loop."""

    settings: RunSettings
    processes: PartialState
    log: MetricsLog
    progress: TrainingProgress
    prompts: PromptSources
    rewards: Rewards
    held_out: list[dict]  # prompts painted while training; none unless `eval.every` is set
    stop: StopRequest = field(default_factory=StopRequest)
    guard: StepGuard = field(default_factory=StepGuard)
    seconds: dict[str, float] = field(default_factory=dict)  # of this cycle, by part
    saved_at: float = field(default_factory=time.monotonic)  # when the last checkpoint was written

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent inside to `part`, less what is timed inside for other parts."""
        start, others = time.perf_counter(), sum(self.seconds.values())
        yield
        others = sum(self.seconds.values()) - others
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start - others

    def is_milestone(self, cycles_done: int) -> bool:
        """Whether a checkpoint and pictures are due after so many cycles: every `save_steps`, and at the end."""
        loop = self.settings.loop
        return cycles_done % loop.save_steps == 0 or cycles_done == loop.cycles

    def save_due(self, cycles_done: int) -> bool:
        """Whether a checkpoint is due: at a milestone, or `save_minutes` after the last. All processes agree."""
        minutes = self.settings.loop.save_minutes
        in_time = minutes is None or time.monotonic() - self.saved_at < 60 * minutes
        return self.is_milestone(cycles_done) or not everywhere(in_time)

    def check(self) -> None:
        """Stop, by an exception on all processes, if asked to, or if updates keep being skipped.

        Both loops call it where the weights are those of whole cycles, and save them when it raises.
        """
        self.guard.check()
        self.stop.check()

    def require_training(self) -> None:
        """Raise UserError on all processes if not a single update was made, in this process or before a resume."""
        if not int(gathered(torch.tensor([self.log.steps_taken])).sum()):
            raise UserError(
                "no update was made: every group was lost to a failed reward, or every update was skipped; "
                f"see `failure` and `skipped` in {self.log.path}"
            )


class TrainingLoop(Protocol):
    """A loop that is ready to train: its model is loaded, its folder open."""

    run: Run

    @property
    def backbone(self) -> Backbone | None:
        """What is trained. None for MaskGRPO as published, which has its own model class."""
        ...

    def train(self) -> None:
        """Train from where the run stands to its last cycle.

        Raises Stopped for a signal, and UserError for anything else that stops a run. It saves the weights first.
        """
        ...

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Cycles done and folder of each complete checkpoint, oldest first."""
        ...

    def save_model(self, folder: Path) -> None:
        """Write what was trained: the whole model, or its adapters."""
        ...


def prepare_run(settings: RunSettings) -> Run:
    """Check the batch against the number of processes, then prompts and reward servers, before any model is loaded.

    Raises UserError for an impossible batch, a checkpoint that is not there, a prompt that the model cannot read or a
    reward cannot score, or an unavailable reward.
    """
    processes = PartialState()
    if problems := settings.problems(processes.num_processes) or settings.model.absent(settings.reward.reads_pixels):
        raise UserError("\n".join(problems))
    log = MetricsLog(settings, processes.is_main_process)
    prompts, encode = prompt_sources(settings), settings.model.prompt_encoder()
    prompts.check(encode)
    held_out = held_out_prompts(settings, prompts, encode)
    check_rewarded(settings.reward, prompts, held_out)
    rewards = Rewards(settings.reward, processes, settings.rollout.rollouts_per_prompt)
    rewards.start()
    return Run(settings, processes, log, TrainingProgress(settings, log.enabled), prompts, rewards, held_out)


def prompt_sources(settings: RunSettings) -> PromptSources:
    """The prompts that a run trains on. Raises UserError when a source cannot be read."""
    return PromptSources(settings.prompts, settings.seed, settings.rollout.prompts_per_cycle, settings.held_out)


def held_out_prompts(settings: RunSettings, prompts: PromptSources, encode: Callable) -> list[dict]:
    """The prompts that the run is evaluated on while it trains. Raises UserError for one that the model cannot read."""
    if settings.eval is None or settings.eval.every is None:
        return []
    held_out = settings.eval.held_out(prompts.all())
    try:
        encode([prompt["prompt"] for prompt in held_out])
    except UserError as error:
        raise UserError(f"held-out prompts: {error} (eval)") from None
    return held_out


def check_rewarded(reward: RewardSettings, prompts: PromptSources, held_out: Sequence[dict]) -> None:
    """Raise UserError, with file and line, for a prompt that a reward of the run can never score."""
    lines = [line for source in prompts.sources for line in source.lines]
    lines += [Line(prompt, "held-out prompts (eval)") for prompt in held_out]
    for term in reward.terms:
        if check := prompt_check(term.name):
            for prompt, place in lines:
                try:
                    check(prompt)
                except ValueError as error:
                    raise UserError(f"{place}: reward {term.name}: {error}") from None


def warmup_factor(step: int, warmup: int) -> float:
    """The factor of the learning rate at optimizer step `step` from 0: linear over `warmup` steps, then 1."""
    return min(1.0, (step + 1) / (warmup + 1))
