"""A set of images in the layout of a benchmark: its prompts, where each image stands, when the set is complete.

The benchmark's own scorers read files, so generating, scoring and summing up are three commands that meet in a folder:

    SET/record.json         what made the images: `record.py`
    SET/images/             the benchmark's published layout, and nothing else
    SET/scores/NAME.jsonl   what a scorer said of each image: `scores.py`
    SET/scores/NAME.json    what scored them: version, calibration, digest of the images
    SET/scores/NAME/        the scorer's own files and log

Q items (prompts), I images per prompt.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from PIL.Image import Image


class Item(NamedTuple):
    """One prompt of a set."""

    key: str  # its name in the layout: GenEval `00000`, DPG-Bench the item_id
    prompt: str  # what the model is asked
    metadata: dict  # the benchmark's own line, unchanged and in its order of keys

    @property
    def tag(self) -> str:
        """Its task, or an empty text where the benchmark has none."""
        return str(self.metadata.get("tag", ""))


class Suite(ABC):
    """Prompts and layout of one benchmark. A subclass has a file here, and a line in `SUITES`."""

    name: ClassVar[str]  # as in --bench
    title: ClassVar[str]
    images_per_prompt: ClassVar[int] = 4

    @abstractmethod
    def items(self, prompts: Path | None) -> list[Item]:
        """The Q items, in the benchmark's order. Raises UserError for a file that is not the benchmark's.

        prompts  the benchmark's prompt file; None: where `make upstream` puts it
        """

    @abstractmethod
    def save(self, root: Path, item: Item, images: Sequence[Image]) -> None:
        """Write all I images of an item into the layout, whole or not at all. root: SET/images."""

    @abstractmethod
    def has(self, root: Path, item: Item, size: tuple[int, int]) -> bool:
        """Whether all images of an item are there and can be read, at (width, height) of one image."""

    @abstractmethod
    def load(self, root: Path, item: Item) -> list[Image]:
        """The I images of an item, cut out of a grid where the layout has grids. Raises UserError for a missing one."""

    @abstractmethod
    def files(self, root: Path, items: Sequence[Item]) -> Iterator[Path]:
        """Every file of the complete layout, in order; whatever else stands in `root` does not belong there."""
