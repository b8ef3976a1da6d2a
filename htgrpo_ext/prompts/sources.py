"""The prompts of each cycle, from one or several sources. The seed and the cycle's number determine them.

Sources have no state, so a resumed run gets the same prompts as an uninterrupted one. Every process computes all
prompts of a cycle and takes its share, so the number of processes does not matter.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from htgrpo_ext.core.randomness import derived_generator
from htgrpo_ext.errors import UserError
from htgrpo_ext.micro import world as micro
from htgrpo_ext.prompts.files import Line, read_prompts
from htgrpo_ext.prompts.settings import PromptSource
from htgrpo_ext.prompts.text_rendering import TRAINED, text_prompts
from htgrpo_ext.words import world as words

ENCODED_AT_ONCE = 1000
OWN = "text-rendering"  # where prompts without a file are from


class World:
    """A world's own RL prompts: tasks in turn, a random prompt of each."""

    def __init__(self, seed: int, per_cycle: int, name: str, prompts: Sequence[dict]):
        self.seed, self.per_cycle = seed, per_cycle
        self.pool: dict[str, list[dict]] = {}
        self.lines = [Line(prompt, f"the {name} world") for prompt in prompts]
        for prompt in prompts:
            self.pool.setdefault(prompt["tag"], []).append(prompt)

    def prompt(self, number: int) -> dict:
        """Prompt `number` of this source, from 0."""
        cycle, place = divmod(number, self.per_cycle)
        noise = torch.rand(self.per_cycle, generator=derived_generator(self.seed, "prompts", cycle))[place].item()
        prompts = self.pool[list(self.pool)[number % len(self.pool)]]
        return prompts[int(noise * len(prompts))]


class Shuffled:
    """A list of prompts in random order; each comes once before any is repeated, in a new order each time.

    name  gives this source an order of its own
    """

    def __init__(self, lines: Sequence[Line], seed: int, name: str):
        self.lines, self.seed, self.name = lines, seed, name
        self._round, self._order = -1, torch.empty(0, dtype=torch.int64)

    def prompt(self, number: int) -> dict:
        """Prompt `number` of this source, from 0."""
        round_, place = divmod(number, len(self.lines))
        if round_ != self._round:
            generator = derived_generator(self.seed, "prompt order", self.name, round_)
            self._round, self._order = round_, torch.randperm(len(self.lines), generator=generator)
        return self.lines[int(self._order[place])].prompt


def _shuffled(source: PromptSource, seed: int, number: int) -> Shuffled:
    """The prompts of a file, or the project's own. number: the source's place in the settings"""
    if source.path is not None:
        return Shuffled(read_prompts(source), seed, f"{number} {source.path.name}")
    lines = [Line(prompt, OWN) for prompt in text_prompts(TRAINED, 0, "train")]
    return Shuffled(lines, seed, f"{number} {OWN}")


class PromptSources:
    """All sources of a run. Raises UserError if one cannot be read.

    per_cycle  prompts of a cycle, over all processes
    held_out   prompts per task of the micro world that only an evaluation may use
    """

    def __init__(self, sources: Sequence[PromptSource], seed: int, per_cycle: int, held_out: int):
        self.per_cycle = per_cycle
        self.weights = [source.weight for source in sources]
        own = {"micro": lambda: micro.split_prompts(held_out), "words": words.split_prompts}
        self.sources = [
            World(seed, per_cycle, source.format, own[source.format]()[0])
            if source.format in own
            else _shuffled(source, seed, i)
            for i, source in enumerate(sources)
        ]
        self._turns: list[tuple[int, int]] = []  # for each prompt since the start: source, and its number there
        self._given = [0] * len(self.sources)

    def all(self) -> Iterator[dict]:
        """Every prompt of every source."""
        return (line.prompt for source in self.sources for line in source.lines)

    def check(self, encode: Callable[[Sequence[str]], object]) -> None:
        """Encode every prompt once. Raises UserError, with file and line, for one that the model cannot read."""
        for source in self.sources:
            for start in range(0, len(source.lines), ENCODED_AT_ONCE):
                lines = source.lines[start : start + ENCODED_AT_ONCE]
                try:
                    encode([line.prompt["prompt"] for line in lines])
                except UserError:
                    for prompt, place in lines:
                        try:
                            encode([prompt["prompt"]])
                        except UserError as error:
                            raise UserError(f"{place}: {error}") from None
                    raise

    def cycle(self, cycle: int) -> list[dict]:
        """The prompts of a cycle, over all processes."""
        while len(self._turns) < (cycle + 1) * self.per_cycle:
            self._turns.append(self._next_turn())
        turns = self._turns[cycle * self.per_cycle : (cycle + 1) * self.per_cycle]
        return [self.sources[source].prompt(number) for source, number in turns]

    def _next_turn(self) -> tuple[int, int]:
        """The source that is furthest behind its share, and the number of its prompt."""
        places, total = len(self._turns) + 1, sum(self.weights)
        behind = [places * w / total - given for w, given in zip(self.weights, self._given, strict=True)]
        source = behind.index(max(behind))
        self._given[source] += 1
        return source, self._given[source] - 1
