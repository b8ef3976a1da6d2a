"""Digests of what made images: checkpoints and adapters.

A file of up to 64 MiB is hashed whole. Of a larger one, the weights of an 8B model, the digest has the size, the first
MiB (with safetensors' header: names, shapes, types) and 256 blocks of 64 KiB, evenly spread to the end. Training or
merging changes nearly all weights, so this tells checkpoints apart in seconds; it does not find a single flipped byte.
The digest's name says which it is: `sha256:` or `sha256-sampled:`.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from htgrpo_ext.errors import UserError

WHOLE, HEAD, BLOCK, BLOCKS = 64 * 2**20, 2**20, 64 * 2**10, 256
SUFFIXES = (".json", ".safetensors", ".bin", ".txt", ".model")  # configurations, weights, tokenizers


def checkpoint_digest(folders: Iterable[Path | None]) -> str:
    """One digest of the files of a model: its checkpoint, and the decoder of its images if that is elsewhere.

    Raises UserError if a folder is missing.
    """
    digest, sampled = hashlib.sha256(), False
    for folder in folders:
        if folder is None:
            continue
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder (model.checkpoint, model.vq_checkpoint)")
        files = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.is_file()]
        for path in files:
            name = path.relative_to(folder)
            if any(part.startswith(".") for part in name.parts):  # .cache of a download
                continue
            size = path.stat().st_size
            digest.update(f"{name} {size}\n".encode())
            sampled |= size > WHOLE
            for block in _blocks(path, size):
                digest.update(block)
    return f"{'sha256-sampled' if sampled else 'sha256'}:{digest.hexdigest()}"


def _blocks(path: Path, size: int) -> Iterable[bytes]:
    with path.open("rb") as file:
        if size <= WHOLE:
            yield file.read()
            return
        yield file.read(HEAD)
        for i in range(BLOCKS):
            file.seek(HEAD + (size - HEAD - BLOCK) * i // (BLOCKS - 1))
            yield file.read(BLOCK)


def adapter_digest(folder: Path) -> str:
    """The digest of an adapter's two files, whole. Raises UserError if one is missing."""
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        try:
            with (folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{folder / name}: {error.strerror} (--adapter)") from None
    return f"sha256:{digest.hexdigest()}"
