"""DPG-Bench (github.com/TencentQQGYLab/ELLA): 1,065 long prompts, and one flat folder of grids.

    ITEM_ID.png   four samples in a 2 x 2 grid: top left, top right, bottom left, bottom right

The official script takes the tile's side as `--resolution`, and cuts wrongly, without an error, if it is another.
"""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from PIL import Image

from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.base import Item, Suite
from htgrpo_ext.imagesets.lines import benchmark_file, benchmark_lines, refuse_repeated
from htgrpo_ext.imagesets.pngs import png_problem, read_png, save_png, written_whole
from htgrpo_ext.prompts.files import json_object, text_at

PROMPTS = 1065
SIDE = 2  # tiles of a grid


class DpgBench(Suite):
    name = "dpg"
    title = "DPG-Bench"
    only_square = True

    def items(self, prompts: Path | None, key: str = "prompt") -> list[Item]:
        path = benchmark_file(prompts, "DPG/dpg_bench.jsonl", self.title)
        lines, items = benchmark_lines(path, self.title), []
        for text, place in lines:
            value = json_object(text, place)
            item_id = text_at("item_id", value, place, "DPG-Bench's")
            if not re.fullmatch(r"[\w-]{1,100}", item_id, re.ASCII):  # the scorer takes the name up to the first dot
                raise UserError(f"{place}: item_id {item_id[:40]!r} cannot be a file's name")
            items.append(Item(item_id, text_at(key, value, place, "--prompt-key"), value, text))
        refuse_repeated(self.title, [item.key for item in items], lines)
        if len(items) != PROMPTS:
            raise UserError(f"{path}: {len(items):,} prompts, but DPG-Bench has {PROMPTS:,}")
        return items

    def top(self, root: Path, item: Item) -> Path:
        return root / f"{item.key}.png"

    def item_files(self, root: Path, item: Item) -> list[Path]:
        return [self.top(root, item)]

    def save(self, root: Path, item: Item, images: Sequence[Image.Image], stamp: str = "") -> None:
        width, height = images[0].size
        grid = Image.new("RGB", (SIDE * width, SIDE * height))
        for (row, column), image in zip(product(range(SIDE), repeat=2), images, strict=True):
            grid.paste(image, (column * width, row * height))
        name = self.top(root, item).name
        with written_whole(root, name) as path:
            save_png(path, grid, stamp, name)

    def problem(self, root: Path, item: Item, size: tuple[int, int]) -> str | None:
        return png_problem(self.top(root, item), (SIDE * size[0], SIDE * size[1]))

    def load(self, root: Path, item: Item) -> list[Image.Image]:
        grid = read_png(self.top(root, item))
        width, height = grid.width // SIDE, grid.height // SIDE
        corners = [(column * width, row * height) for row, column in product(range(SIDE), repeat=2)]
        return [grid.crop((x, y, x + width, y + height)) for x, y in corners]

    def described(self, count: int, size: tuple[int, int]) -> str:
        return f"{count:,} grids of {SIDE} x {SIDE} tiles of {size[0]} x {size[1]} pixels"
