"""What the tests of the patch series share: commits made in a checkout, and where lines stand, read off the text."""

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from htgrpo_ext.errors import UserError
from htgrpo_ext.patches.checkout import IDENTITY, Checkout
from htgrpo_ext.patches.series import Series, rebase


def git(root: Path, *arguments: str, **environment: str) -> str:
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", **IDENTITY, **environment}
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.strip()


def commit(root: Path, parent: str, files: dict[str, str | None], message: str = "upstream moves on") -> str:
    """A commit on `parent` with these files (None: deleted), made beside the work tree; it misses no other blob."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        git(root, "read-tree", parent, **index)
        for path, text in files.items():
            if text is None:
                git(root, "update-index", "--force-remove", path, **index)
            else:
                Path(folder, "file").write_text(text, newline="")
                blob = git(root, "hash-object", "-w", f"{folder}/file")
                git(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", **index)
        tree = git(root, "write-tree", "--missing-ok", **index)
    return git(root, "commit-tree", tree, "-p", parent, "-m", message)


def places(text: str, lines: list[str]) -> dict[str, list[str]]:
    """For each line, the nearest `def` above each place where it stands that is indented less, or `module`."""
    found: dict[str, list[str]] = {line: [] for line in lines}
    rows = text.split("\n")
    for number, row in enumerate(rows):
        if row in found:
            depth = len(row) - len(row.lstrip())
            above = (re.match(r"( *)def (\w+)\(", earlier) for earlier in reversed(rows[:number]))
            names = (match.group(2) for match in above if match and len(match.group(1)) < depth)
            found[row].append(next(names, "module"))
    return found


def expected(series: Series) -> dict[str, list[str]]:
    """Where each line of the series has to stand, from the trailers: `module` for what is not indented."""
    found = {}
    for patch in series.patches:
        inner = [name.rsplit(".", 1)[-1] for name in patch.functions if name != "module"]
        for line in patch.lines:
            found[line] = inner if line.startswith(" ") else ["module"]
    return found


def assert_moved(checkout: Checkout, series: Series, target: str, path: str) -> Series:
    """Rebasing merges: every line in its function, once, and nothing else in the file changed."""
    new = rebase(checkout, series, target, False)
    text, lines = (checkout.root / path).read_text(), [line for patch in series.patches for line in patch.lines]
    assert places(text, lines) == expected(series)
    kept = [row for row in text.split("\n") if row not in lines]
    assert "\n".join(kept) == git(checkout.root, "show", f"{target}:{path}") + "\n"
    assert new.base == target and not checkout.changed_files()
    return new


def assert_stops(checkout: Checkout, series: Series, target: str, patch: str, *words: str) -> str:
    """Rebasing stops at `patch`, says so, and leaves the files in patches/ as they were and the checkout clean."""
    before = {path: path.read_bytes() for path in series.folder.iterdir()}
    with pytest.raises(UserError) as caught:
        rebase(checkout, series, target, False)
    for word in (f"patches/{patch}", f"make rebase-patches TO={target} CONTINUE=1", *words):
        assert word in str(caught.value)
    assert {path: path.read_bytes() for path in series.folder.iterdir()} == before
    assert not checkout.changed_files()
    number = [other.name for other in series.patches].index(patch)
    assert git(checkout.root, "rev-list", "--count", f"{target}..HEAD") == str(number)
    assert git(checkout.root, "merge-base", target, "HEAD") == target
    return str(caught.value)


def renamed(text: str, old: str, new: str) -> str:
    assert text.count(f"def {old}(") == 1
    return text.replace(f"def {old}(", f"def {new}(")


def function_text(text: str, name: str) -> str:
    """A method with its body, up to the next line that is indented no more."""
    rows = text.split("\n")
    first = next(number for number, row in enumerate(rows) if row.startswith(f"    def {name}("))
    last = first + 1
    while last < len(rows) and (rows[last].startswith("     ") or not rows[last] or rows[last].startswith("    )")):
        last += 1
    return "\n".join(rows[first:last]).rstrip("\n") + "\n"
