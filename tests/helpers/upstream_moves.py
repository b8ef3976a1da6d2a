"""What the tests of the patch series share: an upstream made here, commits on it, and where lines stand in a text."""

import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from htgrpo_ext.errors import UserError
from htgrpo_ext.maskgrpo.patches.__main__ import run
from htgrpo_ext.maskgrpo.patches.checkout import IDENTITY
from htgrpo_ext.maskgrpo.patches.series import Series

ROOT = Path(__file__).parents[2]
PATH = "loop/walker.py"


def body(name: str) -> str:
    variables = [f"{name}_{i}" for i in range(20)]
    rows = [f"{variable} = self.step({i})" for i, variable in enumerate(variables)]
    return "".join(f"        {row}\n" for row in [*rows, f"return {', '.join(variables)}"])


SOURCE = (
    '"""A walker."""\n\nimport math\nimport os\n\n\nclass Walker:\n'
    "    def step(self, i):\n        return math.pi + i\n\n"
    f"    def roll(self):\n{body('roll')}\n    def loss(self):\n{body('loss')}\n"
    "    def last(self):\n        return os.sep\n"
)
INDENT = " " * 8
# (subject, Hook-In, Hook-After, Hook-Before, {the start of the row before which it inserts: what it inserts})
HOOKS = [
    (
        "import hooks",
        "module, Walker.roll",
        "roll_7",
        "roll_9",
        {"import os": "import extra", "roll_9 =": "roll_8 += 1"},
    ),
    ("loss: change five", "Walker.loss", "loss_[0-4]", "loss_6", {"loss_6 =": "loss_5 *= 2"}),
    ("loss: change twelve", "Walker.loss", "loss_9", "loss_13, loss_14", {"loss_13 =": "loss_12 *= 3\nloss_11 *= 4"}),
    ("loss: change eighteen", "Walker.loss", "loss_17", "loss_19", {"loss_19 =": "loss_18 *= 5"}),
]
NAMES = ["import-hooks", "loss-change-five", "loss-change-twelve", "loss-change-eighteen"]
NAMES = [f"{number:04d}-{name}.patch" for number, name in enumerate(NAMES, 1)]


def with_hooks(text: str, which: int, end: str = "\n") -> str:
    """`text` with the lines of a hook."""
    for before, lines in HOOKS[which][-1].items():
        indent = "" if before.startswith("import") else INDENT
        added = "".join(f"{indent}{line}{end}" for line in lines.split("\n"))
        text = text.replace(f"{indent}{before}", f"{added}{indent}{before}", 1)
    return text


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


class Project:
    """A folder with patches/ and upstream/; `path` is the file that the patches change."""

    def __init__(self, root: Path, path: str):
        self.root, self.path = root, path
        self.upstream, self.patches, self.file = root / "upstream", root / "patches", root / "upstream" / path

    def run(self, action: str, to: str | None = None, resume: bool = False) -> str:
        return run(action, self.root, str(self.upstream), to, resume)

    def refuses(self, action: str, words: str, to: str | None = None, resume: bool = False) -> str:
        """The action ends in an error with these words (a pattern)."""
        with pytest.raises(UserError, match=words) as caught:
            self.run(action, to, resume)
        return str(caught.value)

    @property
    def series(self) -> Series:
        return Series.load(self.patches)

    @property
    def names(self) -> list[str]:
        return [patch.name for patch in self.series.patches]

    @property
    def head(self) -> str:
        return git(self.upstream, "rev-parse", "HEAD")

    @property
    def changed(self) -> str:
        return git(self.upstream, "status", "--porcelain")

    def move(self, text: str | None, **others: str) -> str:
        """A commit on the base in which the file is `text`."""
        return commit(self.upstream, self.series.base, {self.path: text, **others})

    def source(self, commit: str | None = None) -> str:
        """The file on the base, or another commit."""
        return git(self.upstream, "show", f"{commit or self.series.base}:{self.path}") + "\n"

    def contents(self) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in self.patches.iterdir()}

    def name_in_patches(self, old: str, new: str) -> None:
        for file in self.patches.glob("*.patch"):
            file.write_text(file.read_text().replace(f"Hook-In: {old}", f"Hook-In: {new}"))

    def hooks(self) -> list[tuple[str, str, int, list[str]]]:
        """(patch, function, line of the pristine file before which it inserts, from 0; lines), but for the imports."""
        found, before = [], 0
        for patch in self.series.patches:
            for after, rows in re.findall(r"^@@ -(\d+).*\n((?:\+.*\n)+)", patch.hunks, re.MULTILINE):
                if rows.startswith("+ "):
                    lines = [row[1:] for row in rows.splitlines()]
                    found.append((patch.name, patch.trailer("Hook-In")[-1], int(after) - before, lines))
            before += len(patch.lines)
        return found


def made_here(root: Path) -> Project:
    """Four patches, exported from commits on a repository in upstream/, which is at their end."""
    project = Project(root, PATH)
    project.patches.mkdir()
    project.file.parent.mkdir(parents=True)
    project.file.write_text(SOURCE)
    (project.upstream / "picture.png").write_text("a picture")
    git(project.upstream, "init", "--quiet")
    git(project.upstream, "add", ".")
    git(project.upstream, "commit", "--quiet", "-m", "base")
    base = head = project.head
    (project.patches / "series").write_text(f"# Four.\n# base: {base}\n")
    text = SOURCE
    for which, (subject, where, after, below, _) in enumerate(HOOKS):
        text = with_hooks(text, which)
        order = f"Hook-After: {after}\nHook-Before: {below}"
        message = f"{subject}\n\nNot-A-Subclass: it\nHook-In: {where}\n{order}\nGuarded-By: tests/test_a.py::test_a"
        head = commit(project.upstream, head, {PATH: text}, message)
    git(project.upstream, "checkout", "--quiet", "--detach", head)
    (root / "tests").mkdir()
    (root / "tests" / "test_a.py").write_text("def test_a():\n    pass\n")
    project.run("export")
    return project


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


def assert_moved(project: Project, target: str) -> None:
    """Every line is in its function, once; the rest of the file is the target's; and the new series applies."""
    series = project.series
    lines = {text: patch for patch in series.patches for text in patch.texts}
    text = project.file.read_text()
    expected = {
        line: [
            name.rpartition(".")[2] for name in patch.trailer("Hook-In") if line.startswith(" ") != (name == "module")
        ]
        for line, patch in lines.items()
    }
    assert places(text, list(lines)) == expected
    assert "\n".join(row for row in text.split("\n") if row not in lines) == project.source(target)
    assert series.base == target and not project.changed
    assert "applied already" in project.run("apply")


def assert_stops(project: Project, target: str, patch: str, *words: str) -> None:
    """Rebasing stops at `patch`, says so, and leaves the files in patches/ as they were and the checkout clean."""
    before = project.contents()
    said = project.refuses("rebase", f"patches/{patch}", target)
    for word in (f"make rebase-patches TO={target} CONTINUE=1", project.path, *words):
        assert word in said
    assert project.contents() == before and not project.changed
    number = project.names.index(patch)
    assert git(project.upstream, "rev-list", "--count", f"{target}..HEAD") == str(number)
    assert git(project.upstream, "merge-base", target, "HEAD") == target


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
