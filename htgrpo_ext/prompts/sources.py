"""The prompts of each cycle, from one or several sources. The seed and the cycle's number determine them.

Sources have no state, so a resumed run gets the same prompts as an uninterrupted one. Every process computes all
prompts of a cycle and takes its share, so the number of processes does not matter.

A prompt is a dictionary with at least {"prompt": text}, and GenEval's metadata if the source has them.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from htgrpo_ext.core.randomness import derived_generator
from htgrpo_ext.errors import UserError
from htgrpo_ext.micro import world
from htgrpo_ext.prompts.settings import PromptSource


class MicroWorld:
    """The micro world's RL prompts: tasks in turn, a random prompt of each."""

    def __init__(self, seed: int, per_cycle: int, held_out: int):
        self.seed, self.per_cycle = seed, per_cycle
        self.pool: dict[str, list[world.Prompt]] = {task: [] for task in world.TASKS}
        for prompt in world.split_prompts(held_out)[0]:
            self.pool[prompt["tag"]].append(prompt)

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

    def __init__(self, prompts: Sequence[dict], seed: int, name: str):
        self.prompts, self.seed, self.name = prompts, seed, name
        self._round, self._order = -1, torch.empty(0, dtype=torch.int64)

    def prompt(self, number: int) -> dict:
        """Prompt `number` of this source, from 0."""
        round_, place = divmod(number, len(self.prompts))
        if round_ != self._round:
            generator = derived_generator(self.seed, "prompt order", self.name, round_)
            self._round, self._order = round_, torch.randperm(len(self.prompts), generator=generator)
        return self.prompts[int(self._order[place])]


class PromptSources:
    """All sources of a run. Raises UserError if one cannot be read.

    per_cycle  prompts of a cycle, over all processes
    held_out   prompts per task of the micro world that only an evaluation may use
    """

    def __init__(self, sources: Sequence[PromptSource], seed: int, per_cycle: int, held_out: int):
        self.per_cycle = per_cycle
        self.weights = [source.weight for source in sources]
        self.sources = [
            MicroWorld(seed, per_cycle, held_out)
            if source.path is None
            else Shuffled(read_prompts(source), seed, f"{i} {source.path.name}")
            for i, source in enumerate(sources)
        ]
        self._turns: list[tuple[int, int]] = []  # for each prompt since the start: source, and its number there
        self._given = [0] * len(self.sources)

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


def read_prompts(source: PromptSource) -> list[dict]:
    """All prompts of a file or a folder. Raises UserError naming file and line."""
    path = source.path
    if path is None or not path.exists():
        raise UserError(f"{path}: no such file (prompts.path)")
    if source.format == "dataset":
        prompts = [{"prompt": text} for text in _column(path, source.column)]
    else:
        prompts = list(_lines(path, source.format))
    if not prompts:
        raise UserError(f"{path}: holds no prompt")
    return prompts


def _lines(path: Path, format: str) -> Iterator[dict]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if format == "text":
            yield {"prompt": line.strip()}
            continue
        prompt: Any = None
        try:
            prompt = json.loads(line)
            entries = [(entry["class"], entry["count"]) for entry in prompt["include"]]
            right = isinstance(prompt["prompt"], str) and isinstance(prompt["tag"], str) and entries
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            raise UserError(f"{path}:{number}: not GenEval metadata (a JSON object with tag, include and prompt)")
        yield prompt


def _column(path: Path, column: str) -> list[str]:
    """A text column of a parquet file, of a folder of them, or of a dataset saved by Hugging Face's `save_to_disk`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("prompts of format dataset need pyarrow (pip install 'htgrpo-ext[dataset]')") from None
    files = [path] if path.is_file() else sorted([*path.rglob("*.parquet"), *path.rglob("*.arrow")])
    files = [file for file in files if not file.name.startswith("cache-")]  # what `datasets` keeps of a map or filter
    texts: list[str] = []
    for file in files:
        try:
            if file.suffix == ".arrow":
                with pyarrow.memory_map(str(file)) as source:
                    table = pyarrow.ipc.open_stream(source).read_all()
            else:
                table = parquet.read_table(file)
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{file}: not a parquet or arrow file ({str(error).splitlines()[0]})") from None
        if column not in table.column_names:
            raise UserError(f"{file}: no column `{column}` (it has {', '.join(table.column_names)}; prompts.column)")
        values = table[column].to_pylist()
        if not all(isinstance(value, str) for value in values):
            raise UserError(f"{file}: column `{column}` holds something else than text")
        texts += values
    return texts
