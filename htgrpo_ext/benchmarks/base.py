"""What a run is evaluated by: fixed prompts under fixed noise, and for a benchmark also its verdicts.

`Evaluation` is what both loops know: prompts to paint while they train. A `Benchmark` also judges images before and
after training; evaluation, summary, report and comparison know it only by that class.

S runs (seeds), Q prompts, I images per prompt, B images, N image tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field

from htgrpo_ext.section import Cycles, Section, Seed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor


HELD_OUT_PER_TASK = 4  # of a benchmark's prompts, painted while training: an evaluation costs about a cycle's rollouts


class Verdict(NamedTuple):
    correct: bool  # the score counts these
    partial: float  # share of the prompt's requirements met, in [0, 1]
    reason: str  # the first requirement that failed; "" when correct


class PublishedScores(NamedTuple):
    """A published table of scores, to print beside a comparison of our runs."""

    title: str
    note: str
    rows: dict[str, tuple[float, ...]]  # by the method's label: each task in the order of `task_names`, then overall


class Evaluation(Section, ABC):
    """The `eval` section of a run. A subclass has a `name: Literal[...]`."""

    images_per_prompt: Annotated[int, Field(gt=0, le=1_000)]  # the paper's evaluations have 4
    seed: Seed  # of the noise of the images, and of the intervals' resampling
    every: Cycles | None = None  # cycles between evaluations while training; None: not while training

    title: ClassVar[str]
    world: ClassVar[str | None] = None  # the model whose codes it reads; None: it takes the pixels of any model

    @property
    @abstractmethod
    def num_held_out(self) -> int:
        """How many prompts `held_out` gives."""

    @abstractmethod
    def held_out(self, trained: Iterable[dict]) -> list[dict]:
        """The prompts that are painted while training, the same at every call. Raises UserError.

        trained  all prompts that the run trains on
        """


class Benchmark(Evaluation):
    """An evaluation that judges images, before and after training. A subclass has a line in `BENCHMARKS`.

    While training, the first prompts of each task are painted, the tasks in turn. That no run trains on them is the
    benchmark's own care.
    """

    task_names: ClassVar[dict[str, str]]  # words for each task, in the order of tables; see `task_words`
    rule: ClassVar[str] = (  # what `summarise` computes, for the reader of a report
        "Scores are shares of correct images; overall is the unweighted mean of the tasks. Intervals: 95 %, bootstrap "
        "over prompts within each task"
    )
    published: ClassVar[PublishedScores | None] = None
    measures: ClassVar[Mapping[str, str]] = {}  # names of further numbers of an image, which no score counts: words

    @property
    def num_held_out(self) -> int:
        return len(self.held_out(()))

    def held_out(self, trained: Iterable[dict]) -> list[dict]:
        counts: Counter[str] = Counter()
        turns: list[list[dict]] = [[] for _ in range(HELD_OUT_PER_TASK)]
        for prompt in self.prompts():
            if (turn := counts[prompt["tag"]]) < HELD_OUT_PER_TASK:
                turns[turn].append(prompt)
            counts[prompt["tag"]] += 1
        return [prompt for turn in turns for prompt in turn]

    def task_words(self, task: str) -> str:
        """What people call a task."""
        return self.task_names.get(task, task.replace("_", " "))

    @abstractmethod
    def prompts(self) -> list[dict]:
        """The Q prompts, each at least {"prompt": text, "tag": its task}; the same at every call."""

    @abstractmethod
    def judge(self, prompts: Sequence[dict], codes_BN: Tensor, pixels: Callable[[], Tensor]) -> list[Verdict]:
        """The verdict on each of B images, given as codes, against its own prompt.

        codes_BN  int64 [B, N], on the CPU
        pixels    decodes them when called: float32 [B, 3, H, W] in [-1, 1]
        """

    def measure(
        self, prompts: Sequence[dict], verdicts: Sequence[Verdict], pixels: Callable[[], Tensor]
    ) -> Mapping[str, Sequence[float] | str]:
        """Each of `measures` for B images, which were judged; report and summary show their means beside the scores.

        A prompt's images are adjacent, and all there. A measure that cannot be had here is a text that says why.
        """
        return {}

    @abstractmethod
    def keep(self, codes_BN: Tensor, pixels: Callable[[], Tensor]) -> NDArray:
        """What is saved of B images [B, ...]; arguments as of `judge`."""

    @abstractmethod
    def show(self, kept: NDArray) -> list[Image]:
        """Pictures of B images, from what `keep` saved of them; needs no model."""

    def summarise(self, prompts: Sequence[dict], values: NDArray) -> dict:
        """Scores per task and overall with intervals, by GenEval's rule: see `aggregate`.

        values  [Q, I] or [S, Q, I]: verdicts, or differences of verdicts
        """
        from htgrpo_ext.benchmarks.aggregate import aggregate

        return aggregate(prompts, values, self.seed)
