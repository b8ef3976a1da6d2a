"""GenEval by its authors' script: MMDetection's Mask2Former finds objects, CLIP names their colours.

github.com/djghosh13/geneval; launch/eval/geneval.sh makes the environment. It needs a GPU.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.imagesets.base import Item
from htgrpo_ext.imagesets.columns import Columns
from htgrpo_ext.imagesets.scorers.base import Known, Pictures
from htgrpo_ext.imagesets.scorers.calibration import blanks
from htgrpo_ext.imagesets.scorers.official import ENVIRONMENTS, Official
from htgrpo_ext.imagesets.scorers.sums import task_columns
from htgrpo_ext.imagesets.scores import ScoreLine

DOG = "dog.jpg"  # beside the detector's weights
DETECTOR = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"


class GenEval(Official):
    name = "geneval"
    title = "GenEval"
    suites = ("geneval",)
    metrics = ("correct",)

    checkout: Path = ENVIRONMENTS / "geneval-checkout"
    python: Path = ENVIRONMENTS / "geneval/bin/python"
    commit: str = "af4902f24d3ca90ebbb446dd9891a59e0f82725f"
    models: Path = ENVIRONMENTS / "geneval-models"  # folder of DETECTOR.pth
    config: Path | None = None  # of the detector; None: the one in the environment's mmdet

    script = "evaluation/evaluate_images.py"
    setup = "launch/eval/geneval.sh"
    packages: ClassVar[tuple[str, ...]] = ("torch", "mmcv-full", "mmcv", "mmdet", "open_clip_torch", "clip-benchmark")

    def known(self) -> list[Known]:
        """A blank picture shows no dog, and a picture of a dog shows one: else the detector finds nothing at all."""
        metadata = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
        ask = Item("", metadata["prompt"], metadata)
        known = [Known(ask._replace(key=name), image, {"correct": (0, 0)}) for name, image in blanks()]
        return known + self.picture_of(self.models / DOG, ask, "correct")

    def score(self, pictures: Pictures, work: Path) -> Iterator[ScoreLine]:
        results = work.absolute() / "results.jsonl"
        command = [self.python.absolute(), self.script, pictures.root.absolute(), "--outfile", results]
        config = self.config or next(
            self.python.parent.parent.glob(f"lib/*/site-packages/mmdet/.mim/configs/mask2former/{DETECTOR}.py"), None
        )
        command += ["--model-path", self.models.absolute()]
        command += ["--model-config", config.absolute()] if config else []
        self.run(command, work / "log.txt", results)
        yield from read_results(results, pictures)

    def columns(self, items: Sequence[Item], lines: Sequence[ScoreLine], about: Mapping) -> Columns:
        return task_columns(items, lines)


def read_results(path: Path, pictures: Pictures) -> list[ScoreLine]:
    """The verdict on every image of a set, in its order, from the script's file, which has an order of its own.

    Raises UserError, which names the line, if they are not exactly the verdicts on these images and prompts.
    """
    places = {file.absolute(): place for file, place in _places(pictures)}
    tasks = {item.key: item.metadata for item in pictures.items}
    found: dict[tuple[str, int], ScoreLine] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path}:{number}"
        try:
            line = json.loads(text)
            file = Path(line["filename"]).absolute()
            metadata, correct, reason = json.loads(line["metadata"]), line["correct"], line["reason"]
            if not isinstance(correct, bool):
                raise TypeError("`correct` is neither true nor false")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: no verdict ({one_line(repr(error))})") from None
        if (place := places.get(file)) is None:
            raise UserError(f"{where}: a verdict on {file}, which is not in this set")
        if metadata != tasks[place[0]]:
            raise UserError(f"{where}: a verdict on another prompt than that of {place[0]}")
        if place in found:
            raise UserError(f"{where}: a second verdict on image {place[1]} of {place[0]}")
        found[place] = ScoreLine(*place, {"correct": float(correct)}, reason or "")
    if missing := [place for place in places.values() if place not in found]:
        first = f"image {missing[0][1]} of {missing[0][0]}"
        raise UserError(f"{path}: no verdict on {len(missing)} images; the first is {first}")
    return [found[place] for place in places.values()]


def _places(pictures: Pictures) -> Iterator[tuple[Path, tuple[str, int]]]:
    """Each image file with its item and number, in order."""
    for item in pictures.items:
        files = [path for path in pictures.suite.files(pictures.root, [item]) if path.suffix == ".png"]
        if len(files) != pictures.images_per_prompt:
            raise UserError(f"{pictures.root}: {len(files)} images of {item.key}, not {pictures.images_per_prompt}")
        yield from ((file, (item.key, number)) for number, file in enumerate(files))
