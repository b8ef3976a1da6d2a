"""A set of images in the layout of a benchmark: its prompts, where each image stands, when the set is complete.

The benchmark's own scorers read files, so generating, scoring and summing up are three commands that meet in a folder:

    SET/record.json         what made the images: `record.py`
    SET/prompts.jsonl       the items: `items.py`
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

IMAGES = "images"


class Item(NamedTuple):
    """One prompt of a set."""

    key: str  # its name in the layout: GenEval `00000`, DPG-Bench the item_id
    prompt: str  # what the model is asked
    metadata: dict  # the benchmark's own line, unchanged and in its order of keys
    line: str = ""  # that line as it was written

    @property
    def tag(self) -> str:
        """Its task, or an empty text where the benchmark has none."""
        return str(self.metadata.get("tag", ""))


class Suite(ABC):
    """Prompts and layout of one benchmark. A subclass has a file here, and a line in `SUITES`."""

    name: ClassVar[str]  # as in --bench
    title: ClassVar[str]
    images_per_prompt: ClassVar[int] = 4
    only_square: ClassVar[bool] = False  # whether the benchmark's scorer reads no other images

    @abstractmethod
    def items(self, prompts: Path | None, key: str = "prompt") -> list[Item]:
        """The Q items, in the benchmark's order. Raises UserError for a file that is not the benchmark's.

        prompts  the benchmark's prompt file; None: where `make upstream` puts it
        key      under which a line has the text that the model is asked
        """

    @abstractmethod
    def save(self, root: Path, item: Item, images: Sequence[Image], stamp: str = "") -> None:
        """Write all I images of an item into the layout, whole or not at all. root: SET/images.

        stamp  of the record, for the metadata of the PNGs: `pngs.py`

        Raises UserError if the item is there.
        """

    @abstractmethod
    def problem(self, root: Path, item: Item, size: tuple[int, int]) -> str | None:
        """What is wrong with the files of an item, one line that names the file and ends without advice.

        size  (width, height) of one image
        """

    @abstractmethod
    def load(self, root: Path, item: Item) -> list[Image]:
        """The I images of an item, cut out of a grid where the layout has grids. Raises UserError for a missing one."""

    @abstractmethod
    def item_files(self, root: Path, item: Item) -> list[Path]:
        """The files of one item, in order. All are in what `top` names."""

    @abstractmethod
    def top(self, root: Path, item: Item) -> Path:
        """The file or folder in `root` that holds an item, and nothing else."""

    @abstractmethod
    def described(self, count: int, size: tuple[int, int]) -> str:
        """The images of `count` items in words."""

    def files(self, root: Path, items: Sequence[Item]) -> Iterator[Path]:
        """Every file of the complete layout, in order; whatever else stands in `root` does not belong there."""
        for item in items:
            yield from self.item_files(root, item)
