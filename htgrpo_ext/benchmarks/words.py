"""WordsEval: held-out words of the words world, read by RapidOCR; beside it what the reward cannot see.

The reward of that world is the same reader's, so its verdict alone would not show whether the reward was gamed. A
second reader, Tesseract, and the pictures' brightness, edges and diversity stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from htgrpo_ext.benchmarks.base import Benchmark, Verdict
from htgrpo_ext.words.world import MOST_HELD_OUT, TASKS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from htgrpo_ext.rewards.ocr import Reader


@cache
def _reader() -> Reader:
    from htgrpo_ext.rewards.ocr import Reader

    return Reader(detection=False)


class WordsEval(Benchmark):
    name: Literal["wordseval"]
    prompts_per_task: Annotated[int, Field(ge=1, le=MOST_HELD_OUT)]  # the base has never seen them either

    title = "WordsEval"
    world = "words"
    task_names = {task: task.replace("_", " ") for task in TASKS}
    rule = (
        "Scores are shares of images that RapidOCR reads as exactly the word; overall is the unweighted mean of the "
        "tasks. Intervals: 95 %, bootstrap over prompts within each task"
    )
    measures: ClassVar[Mapping[str, str]] = {
        "similarity": "similarity, RapidOCR",
        "tesseract_exact": "exact, Tesseract",
        "tesseract_similarity": "similarity, Tesseract",
        "brightness": "brightness",
        "edges": "edge strength",
        "diversity": "diversity",
    }

    def prompts(self) -> list[dict]:
        from htgrpo_ext.words.world import split_prompts

        return split_prompts(self.prompts_per_task)[1]

    def judge(self, prompts: Sequence[dict], codes_BN: Tensor, pixels: Callable[[], Tensor]) -> list[Verdict]:
        from htgrpo_ext.pixels import to_levels
        from htgrpo_ext.rewards.texts import plain, similarity

        verdicts = []
        for prompt, levels_3HW in zip(prompts, to_levels(pixels()), strict=True):
            text = plain(_reader().read(levels_3HW))
            right = text == plain(prompt["text"])
            reason = "" if right else f"reads `{text}`" if text else "reads nothing"
            verdicts.append(Verdict(right, similarity(text, prompt["text"]), reason))
        return verdicts

    def measure(
        self, prompts: Sequence[dict], verdicts: Sequence[Verdict], pixels: Callable[[], Tensor]
    ) -> Mapping[str, Sequence[float] | str]:
        from htgrpo_ext.benchmarks import pictures, tesseract
        from htgrpo_ext.pixels import levels_image, to_levels
        from htgrpo_ext.rewards.texts import plain, similarity

        levels_B3HW, wanted = to_levels(pixels()), [prompt["text"] for prompt in prompts]
        grey_BHW = pictures.grey_of(levels_B3HW.numpy())
        found: dict[str, Sequence[float] | str] = {
            "similarity": [verdict.partial for verdict in verdicts],
            "brightness": pictures.brightness(grey_BHW).tolist(),
            "edges": pictures.edge_strength(grey_BHW).tolist(),
        }
        try:
            found["diversity"] = pictures.diversity(grey_BHW, [prompt["prompt"] for prompt in prompts]).tolist()
        except ValueError as error:
            found["diversity"] = str(error)
        try:
            texts = tesseract.read([levels_image(levels) for levels in levels_B3HW])
        except tesseract.NotRead as error:
            return found | {"tesseract_exact": str(error), "tesseract_similarity": str(error)}
        pairs = list(zip(texts, wanted, strict=True))
        found["tesseract_exact"] = [float(plain(text) == plain(word)) for text, word in pairs]
        found["tesseract_similarity"] = [similarity(text, word) for text, word in pairs]
        return found

    def keep(self, codes_BN: Tensor, pixels: Callable[[], Tensor]) -> NDArray:
        from htgrpo_ext.pixels import to_levels

        return to_levels(pixels()).numpy()

    def show(self, kept: NDArray) -> list[Image]:
        import torch

        from htgrpo_ext.pixels import levels_image

        return [levels_image(torch.from_numpy(levels)) for levels in kept]
