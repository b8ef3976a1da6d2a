"""GenEval's layout: a folder per prompt, called by the prompt's number in five digits.

00000/metadata.jsonl      the prompt's line, as it stands in the prompt file
00000/samples/00000.png   and so on, one file per image
"""

from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from htgrpo_ext.imagesets.base import Item, Suite
from htgrpo_ext.imagesets.pngs import png_problem, read_png, save_png, written_whole

METADATA = "metadata.jsonl"


def numbered(lines: Sequence[tuple[str, dict, str]]) -> list[Item]:
    """Items of (prompt, metadata, line), called by their place from 0."""
    return [Item(f"{number:05d}", *line) for number, line in enumerate(lines)]


class FolderSuite(Suite):
    """A suite in GenEval's layout; a subclass has the prompts."""

    def top(self, root: Path, item: Item) -> Path:
        return root / item.key

    def item_files(self, root: Path, item: Item) -> list[Path]:
        return self._files(self.top(root, item))

    def _files(self, folder: Path) -> list[Path]:
        return [folder / METADATA, *(folder / "samples" / f"{i:05d}.png" for i in range(self.images_per_prompt))]

    def save(self, root: Path, item: Item, images: Sequence[Image], stamp: str = "") -> None:
        with written_whole(root, item.key) as folder:
            metadata, *paths = self._files(folder)
            paths[0].parent.mkdir(parents=True)
            metadata.write_text(item.line, encoding="utf-8", newline="")
            for path, image in zip(paths, images, strict=True):
                save_png(path, image, stamp, f"{item.key}/samples/{path.name}")

    def problem(self, root: Path, item: Item, size: tuple[int, int]) -> str | None:
        metadata, *paths = self.item_files(root, item)
        try:
            if metadata.read_bytes() != item.line.encode():
                return f"{metadata}: not the line of the set's prompts"
        except OSError as error:
            return f"{metadata}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}"
        return next(filter(None, (png_problem(path, size) for path in paths)), None)

    def load(self, root: Path, item: Item) -> list[Image]:
        return [read_png(path) for path in self.item_files(root, item)[1:]]

    def described(self, count: int, size: tuple[int, int]) -> str:
        images = f"{count * self.images_per_prompt:,} images"
        return f"{count:,} folders with {images} of {size[0]} x {size[1]} pixels"
