"""Reward models as scorers: in this process, or behind a running reward server (`--set url=http://HOST:PORT`).

launch/eval/NAME.sh makes the environment of a model in this process. Options that are not fields here are the model's
own.

B images of a batch.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL.Image import Image
from pydantic import ConfigDict, field_validator

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.imagesets.base import Item
from htgrpo_ext.imagesets.columns import Columns
from htgrpo_ext.imagesets.scorers.base import Pictures, Scorer
from htgrpo_ext.imagesets.scorers.sums import mean_columns
from htgrpo_ext.imagesets.scores import ScoreLine
from htgrpo_ext.rewards.settings import RewardTerm, url_fault
from htgrpo_ext.section import Rows, Seconds

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL = 4  # requests to a server at a time
RETRIES = 5


class RewardModel(Scorer):
    """A reward, asked about every image and the prompt that it was generated for."""

    model_config = ConfigDict(extra="allow")

    url: str | None = None
    device: str | None = None  # of a model in this process; None: the first GPU if there is one
    batch_size: Rows = 16
    timeout: Seconds = 600.0  # of a request

    incidental = frozenset({"url", "device", "batch_size", "timeout"})
    titles: ClassVar[Mapping[str, str]]  # of each metric, which is the reward's name

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str | None) -> str | None:
        if url is not None and (fault := url_fault(url)):
            raise ValueError(fault)
        return url

    def prepare(self) -> dict:
        self._model.check()
        return {}

    @cached_property
    def _model(self) -> "_Server | _Here":
        return _Server(self) if self.url else _Here(self)

    def score(self, pictures: Pictures, work: Path) -> Iterator[ScoreLine]:
        at_once = self.batch_size * (PARALLEL if self.url else 1)
        step = max(1, at_once // pictures.images_per_prompt)
        for start in range(0, len(pictures.items), step):
            items = pictures.items[start : start + step]
            places = [(item, number) for item in items for number in range(pictures.images_per_prompt)]
            levels_B = [_levels(image) for item in items for image in pictures.load(item)]
            prompts = [self.asked(item) for item, _ in places]
            try:
                values = {name: self._model.score(name, prompts, levels_B) for name in self.metrics}
            except ValueError as error:
                raise UserError(f"scorer {self.name}: {one_line(error, 300)} (a prompt of {items[0].key} ..)") from None
            for row, (item, number) in enumerate(places):
                found = {name: float(values[name][row]) for name in self.metrics}
                if self.may_lack:
                    found = {name: value for name, value in found.items() if not math.isnan(value)}
                yield ScoreLine(item.key, number, found)

    def asked(self, item: Item) -> dict:
        """What the reward is told of an item, at least {"prompt": text}."""
        return {"prompt": item.prompt}

    def columns(self, items: Sequence[Item], lines: Sequence[ScoreLine], about: Mapping) -> Columns:
        return mean_columns(items, lines, self.titles, self.metrics[0] if len(self.metrics) == 1 else "")


def _levels(image: Image) -> "Tensor":
    """uint8 [3, H, W]"""
    import torch

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


class _Here:
    """The model in this process."""

    def __init__(self, scorer: RewardModel):
        import torch

        from htgrpo_ext.rewards.scorers import check_options, device_of, scorer_class

        found, options = scorer_class(scorer.metrics[0]), dict(scorer.model_extra or {})
        check_options(found, scorer.name, options)
        device = device_of(scorer.device or ("cuda:0" if torch.cuda.is_available() else "cpu"), "--set device")
        self._scorer = found(device, **options)
        self._last: tuple[list, Mapping[str, Sequence[float]]] = ([], {})

    def check(self) -> None:
        pass

    def score(self, name: str, prompts: Sequence[dict], levels_B: Sequence["Tensor"]) -> Sequence[float]:
        if self._last[0] is not levels_B:  # it gives all its rewards at once
            self._last = (levels_B, self._scorer.score(prompts, levels_B))  # pyright: ignore[reportAttributeAccessIssue]
        return self._last[1][name]


class _Server:
    """The model behind a reward server."""

    def __init__(self, scorer: RewardModel):
        from htgrpo_ext.rewards.client import RewardClient

        if scorer.model_extra:
            raise UserError(
                f"scorer {scorer.name}: `{next(iter(scorer.model_extra))}` is an option of a model in this process; "
                "give it to the server"
            )
        terms = {
            name: RewardTerm(name=name, weight=1.0, url=scorer.url, timeout=scorer.timeout) for name in scorer.metrics
        }
        self._clients = {name: RewardClient(term, RETRIES) for name, term in terms.items()}
        self._batch, self._may_lack, self._runner = scorer.batch_size, scorer.may_lack > 0, asyncio.Runner()

    def check(self) -> None:
        for client in self._clients.values():
            if fault := self._runner.run(client.health()):
                raise UserError(fault)

    def score(self, name: str, prompts: Sequence[dict], levels_B: Sequence["Tensor"]) -> Sequence[float]:
        from htgrpo_ext.pixels import encode_png
        from htgrpo_ext.rewards.client import RewardFailure

        pngs = [encode_png(levels) for levels in levels_B]

        async def ask(rows: range) -> list[float]:
            try:
                return await self._clients[name].score([prompts[i] for i in rows], [pngs[i] for i in rows])
            except RewardFailure as error:
                if not self._may_lack or "status 400" not in str(error):
                    raise UserError(str(error)) from None
            # One of them has no score, and the server does not say which.
            return [math.nan] if len(rows) == 1 else [(await ask(range(i, i + 1)))[0] for i in rows]

        async def ask_all() -> list[list[float]]:
            starts = range(0, len(pngs), self._batch)
            return await asyncio.gather(*(ask(range(len(pngs))[i : i + self._batch]) for i in starts))

        return [score for part in self._runner.run(ask_all()) for score in part]


class Clip(RewardModel):
    name = "clip"
    title = "CLIP"
    metrics = ("clip",)
    titles: ClassVar = {"clip": "CLIP"}


class UnifiedReward(RewardModel):
    name = "unifiedreward"
    title = "UnifiedReward"
    metrics = ("unifiedreward",)
    may_lack = 0.02  # its answer is in words, and may have no score in them
    titles: ClassVar = {"unifiedreward": "UnifiedReward"}


class ImageReward(RewardModel):
    name = "imagereward"
    title = "ImageReward"
    metrics = ("imagereward",)
    titles: ClassVar = {"imagereward": "ImgRwd"}


class HPSv3(RewardModel):
    name = "hpsv3"
    title = "HPSv3"
    metrics = ("hpsv3",)
    titles: ClassVar = {"hpsv3": "HPSv3"}


class DeQA(RewardModel):
    name = "deqa"
    title = "DeQA-Score"
    metrics = ("deqa",)
    titles: ClassVar = {"deqa": "DeQA"}


class UniPercept(RewardModel):
    """Aesthetics, quality, structure and texture."""

    name = "unipercept"
    title = "UniPercept"
    metrics = ("iaa", "iqa", "ista")
    titles: ClassVar = {"iaa": "IAA", "iqa": "IQA", "ista": "ISTA"}


class Ocr(RewardModel):
    """Text that was read, against the metadata's `text` or what the prompt has between double quotes."""

    name = "ocr"
    title = "OCR"
    metrics = ("ocr", "ocr-exact")
    titles: ClassVar = {"ocr": "OCR", "ocr-exact": "Exact"}
    incidental = RewardModel.incidental | {"threads"}

    def asked(self, item: Item) -> dict:
        return item.metadata | {"prompt": item.prompt}

    def score(self, pictures: Pictures, work: Path) -> Iterator[ScoreLine]:
        from htgrpo_ext.rewards.texts import wanted_text

        for item in pictures.items:  # all of them, before the first image is read
            try:
                wanted_text(self.asked(item))
            except ValueError as error:
                raise UserError(f"scorer {self.name}: {item.key}: {error}") from None
        yield from super().score(pictures, work)
