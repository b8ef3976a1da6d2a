"""The same prompt's images of several runs side by side, for a page that sorts and filters them.

R runs, Q prompts, I images per prompt.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from htgrpo_ext.report.templates import data_uri

IMAGES_SHOWN = 4
SIDE = 176  # pixels of a picture, at most
QUALITY = 80  # of WebP
MOST_BYTES = 9_000_000  # of all pictures of a page, before base64 makes them a third larger


class Prompt(NamedTuple):
    text: str
    task: str  # in words; "" where prompts have no tasks


class Measure(NamedTuple):
    """What a scorer says of the images."""

    title: str
    value_RQI: NDArray  # NaN where an image has no score

    @property
    def spread_Q(self) -> NDArray:
        """How far the runs are apart: the range over runs of each image, then the mean over a prompt's images."""
        range_QI = np.fmax.reduce(self.value_RQI, axis=0) - np.fmin.reduce(self.value_RQI, axis=0)
        return np.nan_to_num(range_QI, nan=0.0).mean(axis=1)

    def mean(self, run: int, prompt: int) -> str:
        """Of a prompt's images in a run, for the page."""
        value_I = self.value_RQI[run, prompt]
        scored = value_I[~np.isnan(value_I)]
        return f"{self.title} {scored.mean():.2f}" if scored.size else f"{self.title} –"


class Run(NamedTuple):
    label: str
    load: Callable[[int], Sequence[Image.Image]]  # the images of the prompt at a place
    correct_QI: NDArray | None  # verdicts; None: no scorer gave any
    words_QI: NDArray  # what stands under an image: why it is not correct, or its score


class Picture(NamedTuple):
    uri: str
    correct: bool | None
    words: str


class Row(NamedTuple):
    """A run's images of a prompt."""

    label: str
    scores: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Shown:
    """A prompt of the page."""

    place: int
    prompt: Prompt
    spreads: list[float]  # of each measure, how far the runs are apart
    rows: list[Row]


@dataclass(frozen=True)
class Gallery:
    title: str
    note: str  # which prompts are shown
    tasks: list[str]
    measures: list[str]
    verdicts: bool
    images: int  # pictures in a row, at most
    shown: list[Shown]


def gallery(
    title: str,
    prompts: Sequence[Prompt],
    runs: Sequence[Run],
    measures: Sequence[Measure],
    most_bytes: int = MOST_BYTES,
) -> Gallery:
    """The prompts about which the first measure differs most, task by task, until their pictures fill `most_bytes`.

    Each task gives as many as the others, as long as it has any. At least one prompt is shown.
    """
    spread_MQ = np.array([measure.spread_Q for measure in measures])
    shown, spent = [], 0
    for place in _turns(prompts, spread_MQ[0]):
        rows, size = _rows(place, runs, measures)
        spent += size
        if shown and spent > most_bytes:
            break
        shown.append(Shown(place, prompts[place], [round(float(s), 6) for s in spread_MQ[:, place]], rows))
    shown.sort(key=lambda each: (-each.spreads[0], each.place))
    verdicts = all(run.correct_QI is not None for run in runs)
    return Gallery(
        title=title,
        note=_note(len(shown), len(prompts), verdicts, most_bytes),
        tasks=[task for task in dict.fromkeys(prompt.task for prompt in prompts) if task],
        measures=[measure.title for measure in measures],
        verdicts=verdicts,
        images=max(len(row.pictures) for each in shown for row in each.rows),
        shown=shown,
    )


def _turns(prompts: Sequence[Prompt], spread_Q: NDArray) -> list[int]:
    """Places: of each task the prompt that differs most, then of each the next one, and so on."""
    ranks: dict[str, int] = {}
    turns = []
    for place in np.argsort(-spread_Q, kind="stable").tolist():
        rank = ranks[prompts[place].task] = ranks.get(prompts[place].task, 0) + 1
        turns.append((rank, place))
    return [place for _, place in sorted(turns, key=lambda turn: turn[0])]


def _rows(place: int, runs: Sequence[Run], measures: Sequence[Measure]) -> tuple[list[Row], int]:
    """Of each run its label, scores and pictures; and the size of the pictures in bytes."""
    rows, size = [], 0
    for number, run in enumerate(runs):
        pictures = []
        for i, image in enumerate(run.load(place)[:IMAGES_SHOWN]):
            content = _webp(image)
            size += len(content)
            correct = None if run.correct_QI is None else bool(run.correct_QI[place, i])
            pictures.append(Picture(data_uri(content, "webp"), correct, str(run.words_QI[place, i])))
        scores = " · ".join(measure.mean(number, place) for measure in measures)
        rows.append(Row(run.label, scores, pictures))
    return rows, size


def _webp(image: Image.Image) -> bytes:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=QUALITY)
    return file.getvalue()


def _note(shown: int, prompts: int, verdicts: bool, most_bytes: int) -> str:
    if shown == prompts:
        return f"All {prompts:,} prompts."
    differ = "verdicts differ most between the runs" if verdicts else "scores differ most between the runs"
    return (
        f"{shown:,} of {prompts:,} prompts, those of each task whose {differ}; with all of them, the pictures would be "
        f"larger than {most_bytes / 1e6:.0f} MB. What is shown is therefore no fair sample."
    )
