"""Files that a reader, or a crash, never sees half written; folders that are known to take files."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from htgrpo_ext.errors import UserError


def require_folder(folder: Path) -> None:
    """Try whether files can be written to a folder, which need not be there: a command does so before it works.

    Raises UserError if not. Leaves nothing behind.
    """
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder}: a file is in the way of this folder") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror})") from None
    finally:
        with suppress(OSError):
            for each in missing:
                each.rmdir()


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


def replace_folder(partial: Path, folder: Path) -> None:
    """Let a complete folder take the place of another. A kill in between is undone by `restore_folder`."""
    sync_tree(partial)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Put back what `replace_folder` had moved away when it was killed."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)


@contextmanager
def new_folder(out: Path, size: int) -> Iterator[Path]:
    """A folder to write into. It becomes `out` if all goes well, and is removed otherwise.

    size  bytes that will be written

    Raises UserError if `out` is there and not empty, if it cannot be written, or if the disk has no room for it.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists already; give another --out")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if (free := shutil.disk_usage(partial).free) < size:
            raise UserError(f"{out}: {size / 1e9:.1f} GB do not fit on this disk, {free / 1e9:.1f} GB are free (--out)")
        yield partial
        sync_tree(partial)
        partial.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}; --out)") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
