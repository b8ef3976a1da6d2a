"""Files that a reader, or a crash, never sees half written; folders that are known to take files, or are held alone."""

import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

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


@contextmanager
def held(
    folder: Path,
    marker_name: str,
    what: str,
    worker: str,
    advice: str,
    note: Mapping[str, str] | None = None,
    check: Callable[[dict], None] = lambda before: None,
) -> Iterator[None]:
    """Make a folder, and hold it alone until the end, however it ends; it is not left behind if nothing was written.

    marker_name  of a file that stays in the folder, and is locked meanwhile
    what         belongs there, who works there, and what to do when it is not possible: for messages
    note         what the marker says besides host and process
    check        is given what the marker said before; it may raise UserError

    Raises UserError if the folder cannot be written, holds files without the marker, or is held already.
    """
    marker = folder / marker_name
    try:
        if (found := folder.exists()) and any(folder.iterdir()) and not marker.exists():
            raise UserError(
                f"{folder}: there are files, but no {what} ({marker_name} is missing); {advice}, or an empty folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        file = marker.open("a+")
    except OSError as error:
        raise UserError(f"{folder}: cannot hold a {what} ({error.strerror}); {advice}") from error
    with file:
        _lock(file, marker, worker, advice)
        check(_read_note(marker))
        file.truncate(0)
        file.write(json.dumps({**(note or {}), "host": socket.gethostname(), "process": os.getpid()}))
        file.flush()
        try:
            yield
        finally:
            if not found and list(folder.iterdir()) == [marker]:  # it was refused before it wrote anything
                marker.unlink()
                folder.rmdir()


def _lock(file: IO[str], marker: Path, worker: str, advice: str) -> None:
    """Lock a marker until it is closed; the system does that after a kill. Raises UserError if it is locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = _read_note(marker)
        where = f"process {who.get('process', '?')} on {who.get('host', '?')}"
        raise UserError(f"{marker.parent}: another {worker} is at work there ({where}); {advice}") from error
    except OSError:
        pass  # a file system without locks


def _read_note(marker: Path) -> dict:
    try:
        found = json.loads(marker.read_text())
    except (OSError, ValueError):  # a kill left it half written
        return {}
    return found if isinstance(found, dict) else {}
