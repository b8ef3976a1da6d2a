"""SET/record.json: what made the images of a set. Two sets are comparable if all but model, adapter and label agree."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.files import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Record:
    bench: str  # name of the suite
    prompts: str  # sha256 of SET/prompts.jsonl: keys, prompts and metadata, in order
    items: int  # Q
    images_per_prompt: int  # I
    seed: int  # of the noise, which depends on it, the item's place and the image's number alone
    size: tuple[int, int]  # width and height of one image; of a tile where the layout has grids
    sampler: dict  # sampler, steps, guidance, temperature, and what else the backbone's sampling reads
    model: dict  # the model section
    weights: str  # digest of the checkpoint: `digests.py`
    adapter: str | None  # digest of the adapter
    label: str  # the row's name in tables
    prompt_key: str = "prompt"  # under which the metadata have the text that the model was asked
    limit: int | None = None  # only so many prompts of each task; None: all, only then is the set the benchmark
    format: int = FORMAT

    @property
    def stamp(self) -> str:
        """The digest of all that the pixels depend on; each PNG of the set has it."""
        return hashlib.sha256(json.dumps(_compared(self), sort_keys=True).encode()).hexdigest()[:16]


# What does not change pixels: where weights lie (their digests are compared), and what only training reads.
NOT_COMPARED = {f"model.{key}" for key in ("checkpoint", "vq_checkpoint", "tuning", "lora", "activation_checkpointing")}


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {at: value}
    return {place: leaf for key in value for place, leaf in _flat(value[key], f"{at}.{key}".strip(".")).items()}


def _compared(record: "Record") -> dict:
    tree = asdict(record) | {"size": list(record.size)}
    del tree["label"]
    tree["model"] = {key: value for key, value in record.model.items() if f"model.{key}" not in NOT_COMPARED}
    return tree


def differences(wanted: "Record", found: "Record") -> Iterator[str]:
    """What makes `found` the record of other images than `wanted`, a few words each; the label counts too."""
    now, then = ({"label": each.label, **_flat(_compared(each))} for each in (wanted, found))
    for key in dict.fromkeys([*now, *then]):
        if now.get(key) != then.get(key):
            yield f"{key} {one_line(then.get(key), 40)}, not {one_line(now.get(key), 40)}"


def write_record(folder: Path, record: Record) -> None:
    """folder: SET"""
    write_atomically(folder / "record.json", json.dumps(asdict(record), indent=2) + "\n")


def read_record(folder: Path) -> Record:
    """Raises UserError if the folder holds no set, or a broken record."""
    path = folder / "record.json"
    try:
        found = json.loads(path.read_text())
        record = Record(**found | {"size": tuple(found["size"])})
    except OSError:
        raise UserError(f"{folder}: no set of images ({path.name} is missing; htgrpo eval generate)") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: broken or incomplete ({one_line(error)})") from None
    if record.format != FORMAT:
        raise UserError(f"{path}: written by another version (format {record.format}, this one reads {FORMAT})")
    return record
