"""All rewards of a run: scored here or by servers, gathered from all processes, mixed into advantages.

    pending = rewards.begin(prompts, codes_BN, images)     servers start to score
    judged = rewards.finish(pending, ..)                   at the deadline, or shortly after; all processes agree

If a reward could not score a rollout, the rollout's whole group is left out: its advantage is zero, it has no part in
the objective, and it is counted. No score is ever invented.

B rollouts of this process, P prompts, G rollouts per prompt; W rollouts of all processes, R rewards.
"""

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather, gather_object
from torch import Tensor

from htgrpo_ext.core.objective import Judged, mixed_advantage
from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.pixels import encode_png, to_levels
from htgrpo_ext.rewards import LARGEST_SCORE, fault_of
from htgrpo_ext.rewards.client import RewardClient, RewardFailure
from htgrpo_ext.rewards.scorers import Scorer, check_options, code_scorer, device_of, scorer_class
from htgrpo_ext.rewards.settings import RewardSettings, RewardTerm

T = TypeVar("T")
log = logging.getLogger(__name__)
WINDOW = 50  # rollout batches; `max_failed_share` is a share of them
GRACE = 5.0  # seconds after the deadline by which the clients' thread must have ended

Outcome = tuple[list[float | None], list[str]]  # a score per rollout, None where it failed; reasons, one line each


@dataclass(frozen=True)
class JudgedBatch(Judged):
    """Rewards and advantages of this process's rollouts, and the metrics of all processes."""

    any_kept: bool  # whether any process kept a rollout
    metrics: dict  # over the rollouts of all processes


@dataclass(frozen=True)
class Scores:
    """Scores of the images of all W rollouts, in order of rank, on the CPU."""

    names: list[str]  # of the R rewards
    score_WR: Tensor  # float32, before weight and scale; NaN where a reward failed
    weight_R: Tensor  # float32, with the scale where the mixing takes it
    failed_W: Tensor  # bool, images that some reward did not score
    failure: str | None  # why, if there are any
    cut: dict[str, int]  # metrics: prompts that a model read in part

    @property
    def reward_W(self) -> Tensor:
        """The weighted sum, float32; NaN where a reward failed."""
        return torch.where(self.failed_W, torch.nan, (self.score_WR * self.weight_R).sum(1))

    def means(self, kept_W: Tensor) -> dict[str, float | None]:
        """Mean and standard deviation of the weighted sum and of each reward, over the images that are kept."""
        metrics = {}
        for name, value_W in zip(("reward", *self.names), (self.reward_W, *self.score_WR.T), strict=True):
            metrics |= {f"{name}_mean": _mean(value_W[kept_W]), f"{name}_std": _std(value_W[kept_W])}
        return metrics


@dataclass
class Pending:
    """Scores that are not all there yet."""

    served: dict[str, Future[Outcome]]  # by name, of rewards behind servers
    here: dict[str, Outcome]  # by name, of rewards in this process
    count: int
    latest: float  # the deadline on time.monotonic's clock


class Rewards:
    """The rewards of a run.

    settings             the run's `reward` section
    processes            the run's accelerator or its state; all its processes call `start` and `finish`
    rollouts_per_prompt  G; a prompt's rollouts are adjacent, on one process or across processes in order of rank
    sleep                waits between the tries of a request; tests replace it
    """

    def __init__(
        self,
        settings: RewardSettings,
        processes: Accelerator | PartialState,
        rollouts_per_prompt: int,
        sleep: Callable = asyncio.sleep,
    ):
        self.settings, self.processes, self.rollouts_per_prompt = settings, processes, rollouts_per_prompt
        self._told: set[str] = set()  # rewards whose cut prompts were logged
        self._failed: deque[bool] = deque(maxlen=WINDOW)
        served = [term for term in settings.terms if term.url is not None]
        self._clients = {term.name: RewardClient(term, settings.retries, sleep) for term in served}
        self._scorers: dict[str, Scorer] = {}  # models that this process holds; loaded by `start`
        self._cut: Counter[str] = Counter()  # of each model that counts them: prompts cut so far, on this process
        self._loop: asyncio.AbstractEventLoop | None = None  # of the clients, if there are any
        if served:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True).start()

    def start(self) -> None:
        """Check that every server has its reward, then load the models of rewards in process.

        Raises UserError: on every process if a server is down or lacks the reward, on this one if a model cannot be
        loaded.
        """
        found = [self._run(client.health()).result() for client in self._clients.values()]
        found = gather_object([line for line in found if line])
        if found:
            raise UserError("\n".join(dict.fromkeys(found)))
        for term in self.settings.terms:
            if term.in_process and term.in_process.world is None:
                device = self.processes.device
                assert device is not None  # it is, once accelerate is set up
                self._scorers[term.name] = load_scorer(term, device)

    def begin(self, prompts: Sequence[dict], codes_BN: Tensor, images: Callable[[], Tensor]) -> Pending:
        """Start scoring. Rewards in process are done on return; servers go on.

        prompts   B prompts, each at least {"prompt": text}; with GenEval's metadata where a reward reads them
        codes_BN  int64 [B, N], read by the micro world's rewards in process
        images    returns pixels float32 [B, 3, H, W] in [-1, 1]; called only if a reward reads pixels
        """
        latest = time.monotonic() + self.settings.deadline
        pending = Pending({}, {}, len(prompts), latest)
        levels_B3HW = to_levels(images()) if self._clients or self._scorers else torch.empty(0)
        for name, client in self._clients.items():
            pending.served[name] = self._run(self._ask(client, prompts, levels_B3HW, latest))
        for term in self.settings.terms:
            if term.name in self._clients:
                continue
            try:
                pending.here[term.name] = _checked(term.name, self._scored_here(term, prompts, codes_BN, levels_B3HW))
            except Exception as error:  # as for a server; the other processes wait at the gather
                why = f"reward {term.name}: {type(error).__name__}: {one_line(error, 300)}"
                pending.here[term.name] = ([None] * len(prompts), [why])
        if not self.settings.overlap:
            for future in pending.served.values():
                self._await(future, pending)
        return pending

    def finish(self, *parts: Pending) -> JudgedBatch:
        """Wait for the servers, gather all processes' scores, mix them.

        parts   results of `begin`; together this process's rollouts, in order
        Raises  UserError as `scores` does
        """
        scores, count = self.scores(*parts), sum(part.count for part in parts)
        mixed = mixed_advantage(
            scores.score_WR, scores.weight_R, scores.failed_W, self.rollouts_per_prompt, self.settings.mixing
        )
        kept_W = ~mixed.failed_P.repeat_interleave(self.rollouts_per_prompt)
        metrics: dict = scores.means(kept_W)
        metrics |= {"zero_std_groups": int(mixed.flat_P.sum()), "groups": len(mixed.flat_P)}
        metrics |= {"failed_groups": int(mixed.failed_P.sum())} | scores.cut
        if scores.failure:
            metrics["failure"] = scores.failure
        own = slice(self.processes.process_index * count, (self.processes.process_index + 1) * count)
        whole = (mixed.reward_B, mixed.advantage_B, kept_W)
        reward_B, advantage_B, kept_B = (each[own].to(self.processes.device) for each in whole)
        return JudgedBatch(reward_B, advantage_B, kept_B, bool(kept_W.any()), metrics)

    def scores(self, *parts: Pending) -> Scores:
        """Wait for the servers, and gather all processes' scores. Every process has equally many images.

        parts   results of `begin`; together this process's images, in order
        Raises  UserError, on every process, if an image was not scored and `on_failure` is stop, or if too many batches
                had such an image
        """
        outcomes: dict[str, Outcome] = {term.name: ([], []) for term in self.settings.terms}
        for part in parts:
            replies = {name: self._await(future, part) for name, future in part.served.items()}
            for name, (scores, reasons) in (part.here | replies).items():
                outcomes[name][0].extend(scores)
                outcomes[name][1].extend(reasons)
        names, terms, device = [t.name for t in self.settings.terms], self.settings.terms, self.processes.device
        given = [[float("nan") if s is None else s for s in outcomes[name][0]] for name in names]
        score_BR = torch.tensor(given, dtype=torch.float32, device=device).T.contiguous()
        score_WR = _gathered(score_BR).cpu()  # mixed on the host: few numbers, and not every device has float64
        scales = self.settings.mixing == "sum"
        weight_R = torch.tensor([t.weight * (t.scale if scales else 1.0) for t in terms])
        failed_W = ~((score_WR.abs() <= LARGEST_SCORE) & ((score_WR * weight_R).abs() <= LARGEST_SCORE)).all(1)
        lost = bool(failed_W.any())
        reasons = gather_object([why for name in names for why in outcomes[name][1]]) if lost else []
        self._count(lost, reasons)
        return Scores(names, score_WR, weight_R, failed_W, _first(reasons) if lost else None, self._cut_prompts())

    def score(self, prompts: Sequence[dict], codes_BN: Tensor, images: Callable[[], Tensor]) -> JudgedBatch:
        """`begin` and `finish` in one call."""
        return self.finish(self.begin(prompts, codes_BN, images))

    def _scored_here(
        self, term: RewardTerm, prompts: Sequence[dict], codes_BN: Tensor, levels_B3HW: Tensor
    ) -> list[float]:
        if term.in_process and term.in_process.world:
            return code_scorer(term.in_process)(prompts, codes_BN, [term.name])[term.name].tolist()
        scores: list[float] = []
        for start in range(0, len(prompts), term.batch_size):
            part = slice(start, start + term.batch_size)
            scored = self._scorers[term.name].score(prompts[part], list(levels_B3HW[part]))[term.name]
            scores += [float(score) for score in scored]
        if len(scores) != len(prompts):
            raise ValueError(f"{len(scores)} scores for {len(prompts)} images")
        return scores

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _ask(self, client: RewardClient, prompts: Sequence[dict], levels: Tensor, latest: float) -> Outcome:
        """Send all requests of one reward at once; cancel those without a reply at the deadline."""

        async def one(start: int) -> list[float]:
            part = slice(start, start + client.term.batch_size)
            files = await asyncio.to_thread(lambda: [encode_png(image) for image in levels[part]])
            return await client.score(prompts[part], files, latest)

        tasks = [asyncio.create_task(one(start)) for start in range(0, len(prompts), client.term.batch_size)]
        late = (await asyncio.wait(tasks, timeout=max(0.0, latest - time.monotonic())))[1]
        for task in late:
            task.cancel()
        scores: list[float | None] = []
        reasons: list[str] = []
        for start, task in zip(range(0, len(prompts), client.term.batch_size), tasks, strict=True):
            count = len(prompts[start : start + client.term.batch_size])
            error: BaseException | None = client.failure(f"no answer by the deadline of {self.settings.deadline:g} s")
            if task not in late:
                error = task.exception()
            scores += task.result() if error is None else [None] * count
            if isinstance(error, RewardFailure):
                reasons.append(str(error))
            elif error is not None:
                reasons.append(f"reward {client.term.name}: {type(error).__name__}: {one_line(error, 300)}")
        return scores, reasons

    def _await(self, future: Future[Outcome], pending: Pending) -> Outcome:
        try:
            return future.result(max(0.0, pending.latest - time.monotonic()) + GRACE)
        except NotInTime:
            return [None] * pending.count, ["the thread of the reward clients does not respond"]

    def _cut_prompts(self) -> dict[str, int]:
        """Of each model in process that counts them: rollouts since the last call whose prompt it read in part."""
        metrics = {}
        for name, scorer in self._scorers.items():
            if (count := getattr(scorer, "cut_prompts", None)) is not None:
                new = torch.tensor([count - self._cut[name]], device=self.processes.device)
                metrics[f"{name}_cut_prompts"] = total = int(_gathered(new).sum())
                if total and name not in self._told and self.processes.is_main_process:
                    log.warning("reward %s reads only the start of %d long prompts (%s_cut_prompts)", name, total, name)
                    self._told.add(name)
                self._cut[name] = count
        return metrics

    def _count(self, lost: bool, reasons: Sequence[str]) -> None:
        """Count failed batches, and stop the run where the settings say so, on every process alike."""
        self._failed.append(lost)
        if lost and self.settings.on_failure == "stop":
            raise UserError(f"{_first(reasons)} (reward.on_failure is stop)")
        failed, share = sum(self._failed), self.settings.max_failed_share
        if lost and failed > share * WINDOW:
            raise UserError(
                f"{failed} of the last {len(self._failed)} rollout batches lost a group to a reward that failed, more "
                f"than {share:g} of {WINDOW} (reward.max_failed_share); the last: {_first(reasons)}"
            )


def load_scorer(term: RewardTerm, device: torch.device) -> Scorer:
    """The model of a reward in process. Raises UserError."""
    scorer = scorer_class(term.name)
    check_options(scorer, term.name, term.options)
    if term.device:
        device = device_of(term.device, f"reward {term.name}: device")
    # A model is initialised at random before its weights are loaded. By default the fork would use every GPU.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return scorer(device, **term.options)


def pooled(parts: Sequence[dict], rollouts_per_prompt: int) -> dict:
    """The metrics of several batches as of one: counts are added, means and deviations pooled exactly."""
    cut = [key for key in parts[0] if key.endswith("_cut_prompts")]
    counts = {key: sum(part[key] for part in parts) for key in ("zero_std_groups", "groups", "failed_groups", *cut)}
    metrics: dict = {}
    for name in (key.removesuffix("_mean") for key in parts[0] if key.endswith("_mean")):
        scored = [part for part in parts if part[f"{name}_mean"] is not None]
        sizes = [(part["groups"] - part["failed_groups"]) * rollouts_per_prompt for part in scored]
        total = sum(sizes)
        mean = sum(n * part[f"{name}_mean"] for n, part in zip(sizes, scored, strict=True)) / total if total else None
        squares = sum(
            (n - 1) * part[f"{name}_std"] ** 2 + n * (part[f"{name}_mean"] - mean) ** 2
            for n, part in zip(sizes, scored, strict=True)
        )
        metrics |= {f"{name}_mean": mean, f"{name}_std": (squares / (total - 1)) ** 0.5 if total else None}
    failures = [part["failure"] for part in parts if "failure" in part]
    return metrics | counts | ({"failure": failures[0]} if failures else {})


def _checked(name: str, scores: Sequence[float]) -> Outcome:
    """The scores that can be used, and why others cannot."""
    faults = {i: fault for i, score in enumerate(scores) if (fault := fault_of(score))}
    return (
        [None if i in faults else score for i, score in enumerate(scores)],
        [f"reward {name}: the score of image {i} {fault}" for i, fault in list(faults.items())[:1]],
    )


def _gathered(value_B: Tensor) -> Tensor:
    """The rows of all processes, in order of rank."""
    gathered = gather(value_B)
    assert isinstance(gathered, Tensor)  # accelerate also takes mappings
    return gathered


def _mean(value_W: Tensor) -> float | None:
    return value_W.mean().item() if len(value_W) else None


def _std(value_W: Tensor) -> float | None:
    return value_W.std().item() if len(value_W) > 1 else None


def _first(reasons: Sequence[str]) -> str:
    """The first of some failures, and the number of the others."""
    reasons = list(dict.fromkeys(reasons)) or ["a score is too large with its weight"]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}"
