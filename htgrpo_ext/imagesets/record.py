"""SET/record.json: what made the images of a set. Two sets are comparable if all but model, adapter and label agree."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.files import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Record:
    bench: str  # name of the suite
    prompts: str  # sha256 of the prompts and metadata, in order
    items: int  # Q
    images_per_prompt: int  # I
    seed: int  # of the noise, which depends on it, the item's place and the image's number alone
    size: tuple[int, int]  # width and height of one image; of a tile where the layout has grids
    sampler: dict  # sampler, steps, guidance, temperature, and what else the backbone's sampling reads
    model: dict  # the model section
    weights: str  # digest of the checkpoint
    adapter: str | None  # digest of the adapter
    label: str  # the row's name in tables
    format: int = FORMAT


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
