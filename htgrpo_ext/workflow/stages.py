"""The stages of `htgrpo reproduce`: of each its command, and what it must have left.

A stage that was killed resumes by the same command. `finished` looks at the files alone. It raises UserError, with the
file's name, for what is broken or was made by other settings.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from htgrpo_ext.config import load_settings
from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.base import IMAGES, Item
from htgrpo_ext.imagesets.record import Record, differences, read_record
from htgrpo_ext.imagesets.scorers import scorer_named
from htgrpo_ext.imagesets.scores import images_digest, read_about, read_scores
from htgrpo_ext.imagesets.sets import check_set, first_of_each_task, items_digest, missing_items
from htgrpo_ext.report.folder import read_summary
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.workflow.compare import Planned
from htgrpo_ext.workflow.generate import record_of, suite_and_file

CLI = ("-m", "htgrpo_ext.cli")
SCRIPTS = Path(__file__).parents[2] / "launch" / "eval"
HTGRPO = (sys.executable, *CLI)


class Stage(ABC):
    """One command."""

    title: ClassVar[str]  # of all stages of this kind

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in messages."""

    @property
    @abstractmethod
    def log(self) -> Path:
        """What the command says goes there."""

    @abstractmethod
    def words(self) -> list[str]:
        """The command."""

    @abstractmethod
    def finished(self) -> bool:
        """Whether its work is there, whole. Raises UserError for what is broken or another's."""

    def refuse_foreign(self) -> None:  # noqa: B027 (most have nothing to see)
        """Raise UserError if another's work is in its place, as far as can be seen before its turn comes."""

    def left(self) -> bool:
        """Whether its command, which ended well, left the work. Raises UserError as `finished` does."""
        return self.finished()

    @abstractmethod
    def result(self) -> str:
        """What came out, in a few words."""

    @property
    def total(self) -> int:
        """Parts of the work."""
        return 1

    def done(self) -> int:
        """Parts of the work that are done."""
        return 0


@dataclass(frozen=True)
class Train(Stage):
    run: Planned
    label: str
    loop: str
    command: Sequence[str]
    logs: Path

    title = "train"

    @property
    def name(self) -> str:
        return f"train {self.run.folder.name}"

    @property
    def log(self) -> Path:
        return self.logs / f"train-{self.run.folder.name}.log"

    @property
    def total(self) -> int:
        return self.run.settings.loop.cycles

    def done(self) -> int:
        return self.run.cycles_done()

    def words(self) -> list[str]:
        resume = ["--resume"] if self.run.state == "unfinished" else []
        return [*self.command, "train", *self.run.arguments, "--loop", self.loop, *resume]

    def refuse_foreign(self) -> None:
        self.finished()

    def finished(self) -> bool:
        if self.run.state != "finished":
            return False
        cycles, wanted = read_summary(self.run.folder)["cycles"], self.run.settings.loop.cycles
        if cycles != wanted or not any((self.run.folder / "model").rglob("*.safetensors")):
            raise UserError(
                f"{self.run.folder}: not the model of {wanted} cycles that its summary.json speaks of; remove the run"
            )
        return True

    def result(self) -> str:
        first, last = ("none" if r is None else f"{r:.3f}" for r in read_summary(self.run.folder)["reward"])
        return f"reward {first} → {last}  {self.run.folder / 'report.html'}"


@dataclass(frozen=True)
class Generate(Stage):
    """The images of a run, or of the base model (`run` is None)."""

    files: Sequence[Path]
    overrides: Sequence[str]
    bench: str
    limit: int | None
    command: Sequence[str]
    logs: Path
    run: Planned | None
    label: str
    folder: Path  # SET

    title = "generate"

    @property
    def name(self) -> str:
        return f"generate {self.folder.parent.name} {self.folder.name}"

    @property
    def log(self) -> Path:
        return self.logs / f"generate-{self.folder.parent.name}-{self.folder.name}.log"

    @property
    def images(self) -> int:
        """How many images it makes."""
        return self.total * suite_and_file(self.bench, None)[0].images_per_prompt

    @property
    def settings(self) -> RunSettings:
        return load_settings(self.files, self._sets())

    def _sets(self) -> list[str]:
        """Full weights are a checkpoint of their own; an adapter goes onto the base model's."""
        trained = self.run is not None and self.run.settings.model.tuning == "full"
        return [*self.overrides, *([f"model.checkpoint={self.run.folder / 'model'}"] if self.run and trained else [])]

    @property
    def adapter(self) -> Path | None:
        return self.run.folder / "model" if self.run and self.run.settings.model.tuning == "lora" else None

    def words(self) -> list[str]:
        sets = [word for each in self._sets() for word in ("--set", each)]
        adapter = ["--adapter", str(self.adapter)] if self.adapter else []
        limit = ["--limit", str(self.limit)] if self.limit else []
        where = ["--bench", self.bench, "--out", str(self.folder), "--label", self.label]
        return [*self.command, "eval", "generate", *map(str, self.files), *sets, *where, *adapter, *limit]

    def _items(self) -> list[Item]:
        suite, prompts = suite_and_file(self.bench, None)
        return first_of_each_task(suite.items(prompts), self.limit)

    def wanted(self) -> Record:
        """The record of the set, but for the images' size. The run must be there."""
        settings, items = self.settings, self._items()
        assert settings.sampling is not None  # `stages_of` has looked
        suite = suite_and_file(self.bench, None)[0]
        made = record_of(settings.model, settings.sampling, suite, self.adapter, self.label)
        return replace(made, prompts=items_digest(items), items=len(items), limit=self.limit)

    @property
    def total(self) -> int:
        return len(self._items())

    def done(self) -> int:
        images = self.folder / IMAGES
        return sum(not path.name.startswith(".") for path in images.iterdir()) if images.is_dir() else 0

    def refuse_foreign(self) -> None:
        painted = self.run is None or self.run.state == "finished"  # else its weights are not there to compare
        if painted and (self.folder / "record.json").exists():
            self._record()

    def _record(self) -> Record:
        record = read_record(self.folder)
        if differ := "; ".join(differences(replace(self.wanted(), size=record.size), record)):
            raise UserError(f"{self.folder}: the set there has {differ}; remove it, or reproduce in another folder")
        return record

    def finished(self) -> bool:
        if not (self.folder / "record.json").exists():
            return False
        suite = suite_and_file(self.bench, None)[0]
        return not missing_items(self.folder, suite, self._items(), self._record())

    def result(self) -> str:
        return str(self.folder)


@dataclass(frozen=True)
class Score(Stage):
    images: Generate
    scorer: str
    command: Sequence[str]
    logs: Path

    title = "score"

    @property
    def name(self) -> str:
        return f"{self.images.name.replace('generate', 'score', 1)} by {self.scorer}"

    @property
    def log(self) -> Path:
        folder = self.images.folder
        return self.logs / f"score-{folder.parent.name}-{folder.name}-{self.scorer.replace('/', '-')}.log"

    def words(self) -> list[str]:
        script = SCRIPTS / f"{self.scorer}.sh"  # where there is one, it makes the scorer's own environment
        start = [str(script)] if script.is_file() else [*self.command, "eval", "score", "--scorer", self.scorer]
        return [*start, str(self.images.folder)]

    def finished(self) -> bool:
        folder, name = self.images.folder, scorer_named(self.scorer).name
        if (about := read_about(folder, name)) is None:
            return False
        suite, items, record = check_set(folder)
        if about["images"] != images_digest(folder, suite, items):
            return False  # it scored images that were replaced since
        read_scores(folder, name, items, record.images_per_prompt)
        return True

    def done(self) -> int:
        return int((self.images.folder / "scores" / f"{scorer_named(self.scorer).name}.json").exists())

    def result(self) -> str:
        return str(self.images.folder / "scores")


@dataclass(frozen=True)
class Summarize(Stage):
    folders: Sequence[Path]
    out: Path
    baseline: str
    command: Sequence[str]
    logs: Path

    title = "summarize"

    @property
    def name(self) -> str:
        return "summarize"

    @property
    def log(self) -> Path:
        return self.logs / "summarize.log"

    def words(self) -> list[str]:
        sets = map(str, self.folders)
        return [*self.command, "eval", "summarize", *sets, "--out", str(self.out), "--baseline", self.baseline]

    def finished(self) -> bool:
        return False  # it takes seconds, and the sets may have changed

    def left(self) -> bool:
        return self.done() == 1

    def done(self) -> int:
        return int(self.out.is_dir() and any(self.out.iterdir()))

    def result(self) -> str:
        return str(self.out)
