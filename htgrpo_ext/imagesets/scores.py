"""What a scorer said of each image of a set: SET/scores/NAME.jsonl, one line per image, in the set's order."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.files import write_atomically
from htgrpo_ext.imagesets.base import IMAGES, Item, Suite


@dataclass(frozen=True)
class ScoreLine:
    """One image's scores."""

    item: str  # the key of its item
    image: int  # its number, 0 .. I-1
    values: Mapping[str, float]  # by metric; a verdict is `correct`, 0 or 1
    reason: str = ""  # why it is not correct
    answers: Mapping[str, bool] = field(default_factory=dict)  # DPG-Bench: raw answers, by proposition_id


def write_scores(folder: Path, scorer: str, lines: Iterable[ScoreLine], about: Mapping) -> None:
    """Write SET/scores/NAME.jsonl and, last, NAME.json, which says that they are whole. folder: SET."""
    text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
    write_atomically(folder / "scores" / f"{scorer}.jsonl", text)
    write_atomically(folder / "scores" / f"{scorer}.json", json.dumps(dict(about), indent=2) + "\n")


def images_digest(folder: Path, suite: Suite, items: Sequence[Item]) -> str:
    """sha256 of all files of a complete set, by name and content. folder: SET"""
    root, whole = folder / IMAGES, hashlib.sha256()
    for path in suite.files(root, items):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{digest} {path.relative_to(root)}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def refuse_changed_images(folder: Path, scorer: str, about: Mapping, digest: str) -> None:
    """Raise UserError if the images of a set are not those that a scorer saw.

    about   the content of SET/scores/NAME.json
    digest  of the images as they are
    """
    if about["images"] != digest:
        raise UserError(
            f"{folder / IMAGES}: the images changed since {scorer} scored them; score the set again (htgrpo eval score)"
        )


def read_about(folder: Path, scorer: str) -> dict | None:
    """What scored a set: the content of SET/scores/NAME.json; None if it was not scored. Raises UserError."""
    path = folder / "scores" / f"{scorer}.json"
    try:
        about = json.loads(path.read_text())
        if not isinstance(about, dict) or not isinstance(about["images"], str):
            raise ValueError("no digest of the images")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: broken or incomplete ({one_line(error)}); score the set again (--again)") from None
    return about


def read_scores(folder: Path, scorer: str, items: Sequence[Item], images_per_prompt: int) -> list[ScoreLine]:
    """The lines of a scorer, Q * I of them in order. Raises UserError if they do not match the images of the set."""
    path = folder / "scores" / f"{scorer}.jsonl"
    try:
        lines = [ScoreLine(**json.loads(line)) for line in path.read_text().splitlines()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it with htgrpo eval score") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: broken or incomplete ({one_line(error)})") from None
    wanted = [(item.key, image) for item in items for image in range(images_per_prompt)]
    if (found := [(line.item, line.image) for line in lines]) != wanted:
        place = next(
            (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
        )
        raise UserError(
            f"{path}:{place + 1}: {len(found)} lines do not match the set's {len(wanted)} images; "
            "score the set again (htgrpo eval score)"
        )
    return lines
