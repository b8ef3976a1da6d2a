"""Score a set of images: the scorer is calibrated, judges every image, and what it wrote is checked.

Q items (prompts), I images per prompt.
"""

import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from htgrpo_ext.errors import UserError
from htgrpo_ext.files import held
from htgrpo_ext.imagesets.base import IMAGES
from htgrpo_ext.imagesets.scorers.base import Pictures, Scorer
from htgrpo_ext.imagesets.scorers.calibration import calibrate, read_known
from htgrpo_ext.imagesets.scorers.partial import PartialScores
from htgrpo_ext.imagesets.scores import ScoreLine, images_digest, read_about, write_scores
from htgrpo_ext.imagesets.sets import check_set

FORMAT = 1
PARTIAL, MARKER, RUN = "partial.jsonl", "scoring.json", "run"
Place = tuple[str, int]  # key of an item, number of its image


def score(folder: Path, scorer: Scorer, origin: str, again: bool = False, calibration: Path | None = None) -> bool:
    """Write SET/scores/NAME.jsonl and NAME.json.

    folder       SET; it must be complete
    origin       how the scorer was asked for: its name, or file.py:Class
    again        score a set that was scored already
    calibration  a folder of pictures whose verdict is known, besides the scorer's own; see scorers/calibration.py
    Returns      False if these images were scored already; nothing is written then
    Raises       UserError; what was scored before stays as it was
    """
    known = read_known(calibration) if calibration else []
    suite, items, record = check_set(folder)
    if scorer.suites is not None and suite.name not in scorer.suites:
        raise UserError(f"{folder}: a set of {suite.title}, but {scorer.name} scores {', '.join(scorer.suites)}")
    digest = images_digest(folder, suite, items)
    before = None if again else read_about(folder, scorer.name)
    if before and before["images"] == digest:
        return False
    work = folder / "scores" / scorer.name
    with held(work, MARKER, "scorer's files", "process", "wait for it, or move them away"):
        about = {"format": FORMAT, "scorer": origin, "images": digest, **scorer.prepare()}
        options = scorer.model_dump(mode="json")
        header = about | {"options": {key: options[key] for key in options.keys() - scorer.incidental}}
        known, run = [*scorer.known(), *known], _new_run(work)
        calibrated = calibrate(scorer, suite, known, run / "calibration") if known else []
        pictures = Pictures(suite, folder / IMAGES, items, record.images_per_prompt, record.size)
        lines = _scored(scorer, pictures, header, work / PARTIAL, run / "own")
        lacking = sum(len(line.values) < len(scorer.metrics) for line in lines)
        if lacking > scorer.may_lack * len(lines):
            (work / PARTIAL).unlink()
            raise UserError(f"scorer {scorer.name}: no score for {lacking} of {len(lines)} images")
        if images_digest(folder, suite, items) != digest:
            raise UserError(f"{folder / IMAGES}: the images changed while they were scored; score them again")
        about |= {
            "options": options,
            "lines": len(lines),
            "lacking": lacking,
            "calibration": calibrated,
            **scorer.learnt(items),
        }
        write_scores(folder, scorer.name, lines, about)
        (work / PARTIAL).unlink()
        run.rename(work / RUN)
    return True


def _new_run(work: Path) -> Path:
    """A folder that no other process writes to: a script may outlive a command that was killed, and has its own."""
    for old in work.glob(f"{RUN}*"):
        shutil.rmtree(old)
    return Path(tempfile.mkdtemp(prefix=f"{RUN}-", dir=work))


def _scored(scorer: Scorer, pictures: Pictures, header: dict, path: Path, work: Path) -> list[ScoreLine]:
    """All lines; the first ones perhaps from before a kill, by a scorer with the same header."""
    items, images = pictures.items, pictures.images_per_prompt
    wanted = [(item.key, image) for item in items for image in range(images)]
    if scorer.whole:
        path.unlink(missing_ok=True)
    work.mkdir()
    with PartialScores(path, header, wanted, images) as partial:
        if left := items[len(partial.lines) // images :]:
            for line in scorer.score(pictures._replace(items=left), work):
                _check(scorer, line, len(partial.lines), wanted, work)
                partial.add(line)
        lines = partial.lines
    if len(lines) != len(wanted):
        raise UserError(f"scorer {scorer.name}: {len(lines)} lines for {len(wanted)} images ({work})")
    return lines


def _check(scorer: Scorer, line: ScoreLine, place: int, wanted: Sequence[Place], work: Path) -> None:
    """Raise UserError for a line of another image than the one in turn, or without a finite number of each metric.

    A scorer that may lack scores may leave them out.
    """
    if place >= len(wanted) or (line.item, line.image) != wanted[place]:
        turn = "the end" if place >= len(wanted) else f"image {wanted[place][1]} of {wanted[place][0]}"
        raise UserError(f"scorer {scorer.name}: a line of image {line.image} of {line.item}, not of {turn} ({work})")
    wanted_values = line.values if scorer.may_lack else scorer.metrics
    wrong = [metric for metric in wanted_values if not math.isfinite(line.values.get(metric, math.nan))]
    if wrong or line.values.keys() - set(scorer.metrics):
        what = f"no finite `{wrong[0]}`" if wrong else "a metric that it does not have"
        raise UserError(f"scorer {scorer.name}: image {line.image} of {line.item} got {what} ({work})")
