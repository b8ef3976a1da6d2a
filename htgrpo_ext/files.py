"""Files that a reader, or a crash, never sees half written."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under another name, force it to disk, then rename it. Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def sync_tree(folder: Path) -> None:
    """Force a folder's files to disk, so that a rename cannot outrun their contents."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
