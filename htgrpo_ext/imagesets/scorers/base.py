"""What a scorer is: what it says of each image of a set, and how that makes the columns of a table.

A new scorer is a file in this folder and a line in `SCORERS`. One outside this project is `--scorer file.py:Class`.

Q items (prompts), I images per prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from PIL.Image import Image

from htgrpo_ext.imagesets.base import Item, Suite
from htgrpo_ext.imagesets.columns import Columns
from htgrpo_ext.imagesets.scores import ScoreLine
from htgrpo_ext.section import Section


class Pictures(NamedTuple):
    """Images to score, in the layout of a benchmark."""

    suite: Suite
    root: Path  # SET/images, or another folder in this layout
    items: Sequence[Item]
    images_per_prompt: int  # I
    size: tuple[int, int]  # width and height of one image; of a tile where the layout has grids

    def load(self, item: Item) -> list[Image]:
        """The I images of an item. Raises UserError for a missing one."""
        return self.suite.load(self.root, item)


class Known(NamedTuple):
    """A calibration picture: what must come out is known."""

    item: Item  # `key` names it in messages; the suite's layout has keys of its own
    image: Image
    expect: Mapping[str, tuple[float, float]]  # of a metric the lowest and highest value that is right


class Scorer(Section, ABC):
    """Its fields are its options, `--set OPTION=VALUE`."""

    name: ClassVar[str]  # as in --scorer, and in the names of its files
    title: ClassVar[str]
    suites: ClassVar[tuple[str, ...] | None] = None  # names of the suites that it can score; None: any
    metrics: ClassVar[tuple[str, ...]]  # the keys of every line's values
    whole: ClassVar[bool] = False  # it scores a set at once: after a kill it begins again
    may_lack: ClassVar[float] = 0.0  # share of images that may have no score; they are counted, and not part of means
    incidental: ClassVar[frozenset[str]] = frozenset()  # options on which no score depends, such as a device

    def prepare(self) -> dict:
        """What scores here, such as commits and versions, for SET/scores/NAME.json. Called before anything is scored.

        Raises UserError, with the command that helps, if it cannot work here.
        """
        return {}

    def known(self) -> list[Known]:
        """Calibration pictures of its own, scored first. The set is refused if they come out wrong."""
        return []

    @abstractmethod
    def score(self, pictures: Pictures, work: Path) -> Iterator[ScoreLine]:
        """A line for each image, item by item, in order.

        work    an empty folder for its own files and its log
        Raises  UserError if an image cannot be scored
        """

    def learnt(self, items: Sequence[Item]) -> dict:
        """What `columns` needs besides the lines, for SET/scores/NAME.json."""
        return {}

    @abstractmethod
    def columns(self, items: Sequence[Item], lines: Sequence[ScoreLine], about: Mapping) -> Columns:
        """The columns of its table.

        lines  Q * I of them in order, as `read_scores` returns them
        about  the content of SET/scores/NAME.json
        """

    def columns_official(self, items: Sequence[Item], lines: Sequence[ScoreLine], about: Mapping) -> Columns | None:
        """The columns as the benchmark's own script counts, where that differs; else None."""
        return None
