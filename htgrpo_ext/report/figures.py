"""Pictures of evaluated images: contact sheets, and the before and after of a README.

Q prompts, I images per prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, cast

from PIL import Image, ImageDraw, ImageFont

from htgrpo_ext.benchmarks import Benchmark, benchmark_of
from htgrpo_ext.errors import UserError
from htgrpo_ext.report.folder import Scored, read_config, read_prompts, read_scored

RIGHT, WRONG, INK = "#1a9850", "#d73027", "#222222"
IMAGES_SHOWN = 4
T = TypeVar("T")


def pictures(benchmark: Benchmark, scored: Scored, place: int, side: int) -> list[Image.Image]:
    """The first images of the prompt at `place`, made no wider and no higher than `side` pixels."""
    images = benchmark.show(scored.kept_QI[place, :IMAGES_SHOWN])
    for image in images:
        image.thumbnail((side, side))
    return images


def spread(rows: Sequence[T], most: int) -> list[T]:
    """At most so many of the rows, the first and the last among them, as evenly spaced as can be."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def first_of_each_task(prompts: list[dict], count: int) -> dict[str, list[int]]:
    """Places of the first `count` prompts of each task: the rule by which prompts are shown, whatever came of them."""
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        of_task = places.setdefault(prompt["tag"], [])
        if len(of_task) < count:
            of_task.append(place)
    return places


def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # a bitmap only where no size is given


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines no wider than `width` pixels, broken between words (a longer word stands alone)."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def contact_sheet(
    images: list[Image.Image],
    columns: int,
    captions: list[str] | None = None,
    border_colors: list[str] | None = None,
    scale: int = 1,
) -> Image.Image:
    """Images of one size in rows of `columns`, each with its caption beneath and a border in its color.

    scale  how many times as large to draw the images, with borders and text to match
    """
    gap, border, font = 6 * scale, 3 * scale, _font(11 * scale)
    width, height = (scale * length for length in images[0].size)
    cell = width + 2 * border
    wrapped = [_wrap(caption, cell - border, font) for caption in captions or [""] * len(images)]
    line = sum(font.getmetrics())
    rows = [range(first, min(first + columns, len(images))) for first in range(0, len(images), columns)]
    below = [line * max(len(wrapped[i]) for i in row) + gap // 2 for row in rows]
    size = gap + columns * (cell + gap), gap + sum(below) + len(rows) * (height + 2 * border + gap)
    sheet = Image.new("RGB", size, "white")
    draw, top = ImageDraw.Draw(sheet), gap
    for row, text_height in zip(rows, below, strict=True):
        for column, i in enumerate(row):
            left, bottom = gap + column * (cell + gap), top + height + 2 * border
            if border_colors:
                draw.rectangle((left, top, left + cell - 1, bottom - 1), border_colors[i])
            sheet.paste(images[i].resize((width, height), Image.Resampling.LANCZOS), (left + border, top + border))
            for n, words in enumerate(wrapped[i]):
                draw.text((left + border, bottom + gap // 3 + n * line), words, INK, font)
        top += height + 2 * border + text_height + gap
    return sheet


def write_before_after(folder: Path, out: Path) -> None:
    """A PNG of 1200 px for a README: the first prompt of each task, drawn by the base and by the trained model.

    Both from the same noise; images with a green border are correct, with a red one not. Raises UserError for a run
    without a benchmark.
    """
    benchmark, prompts = benchmark_of(read_config(folder)), read_prompts(folder)
    if benchmark is None:
        raise UserError(f"{folder}: the run has no evaluation, so there are no images before and after")
    base, trained = read_scored(folder, "base"), read_scored(folder, "trained")
    places = [first for (first,) in first_of_each_task(prompts, 1).values()]
    blocks = [_block(benchmark, prompts[place], [base, trained], place) for place in places]
    side = 600
    rows = -(-len(blocks) // 2)
    height = blocks[0].height + 14
    sheet = Image.new("RGB", (2 * side, rows * height), "white")
    for i, block in enumerate(blocks):
        sheet.paste(block, (i % 2 * side + (side - block.width) // 2, i // 2 * height + 7))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


def _block(benchmark: Benchmark, prompt: dict, both: list[Scored], place: int) -> Image.Image:
    """One prompt: its words, a row of images before and a row after."""
    rows = []
    for scored in both:
        borders = [RIGHT if right else WRONG for right in scored.correct_QI[place, :IMAGES_SHOWN]]
        rows.append(contact_sheet(pictures(benchmark, scored, place, 128), IMAGES_SHOWN, None, borders))
    head, margin = 44, 26
    block = Image.new("RGB", (margin + rows[0].width, head + 2 * rows[0].height), "white")
    draw = ImageDraw.Draw(block)
    draw.text((margin + 6, 2), benchmark.task_words(prompt["tag"]), "#777777", _font(14))
    draw.text((margin + 6, 20), prompt["prompt"], INK, _font(17))
    for i, (row, name) in enumerate(zip(rows, ("before", "after"), strict=True)):
        top = head + i * row.height
        block.paste(row, (margin, top))
        label = Image.new("RGB", (row.height, margin), "white")
        ImageDraw.Draw(label).text((row.height // 2, margin // 2), name, INK, _font(15), anchor="mm")
        block.paste(label.rotate(90, expand=True), (0, top))
    return block
