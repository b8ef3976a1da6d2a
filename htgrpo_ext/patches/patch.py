"""A patch: lines that one file gets, between which of its lines, and in which functions they have to stand."""

import ast
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from htgrpo_ext.errors import UserError

FROM_LINE = f"From {'0' * 40} Mon Sep 17 00:00:00 2001"
DATE_LINE = "Date: Thu, 1 Jan 2026 00:00:00 +0000"


@dataclass(frozen=True)
class Hunk:
    """`lines` go behind line `after` (from 1) of the old file, and begin at line `start` of the new one."""

    after: int
    start: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Patch:
    """One patch of one file. `functions`: where its lines must stand, a qualified name or `module`."""

    name: str
    subject: str
    body: str
    path: str
    old_blob: str
    new_blob: str
    hunks: tuple[Hunk, ...]

    @property
    def functions(self) -> list[str]:
        return trailer(self.body, "Hook-In")

    @property
    def lines(self) -> list[str]:
        return [line for hunk in self.hunks for line in hunk.lines]

    @property
    def message(self) -> str:
        return f"{self.subject}\n\n{self.body}\n"

    def text(self) -> str:
        """The patch as a file: mail format, zero context, no heading behind `@@`, which would quote upstream."""
        out = [FROM_LINE, "From: HT-GRPO <patches@htgrpo.invalid>", DATE_LINE, f"Subject: [PATCH] {self.subject}", ""]
        out += [*self.body.splitlines(), "---", f"diff --git a/{self.path} b/{self.path}"]
        out += [f"index {self.old_blob}..{self.new_blob} 100644", f"--- a/{self.path}", f"+++ b/{self.path}"]
        for hunk in self.hunks:
            count = "" if len(hunk.lines) == 1 else f",{len(hunk.lines)}"
            out += [f"@@ -{hunk.after},0 +{hunk.start}{count} @@", *(f"+{line}" for line in hunk.lines)]
        return "\n".join(out) + "\n"


def trailer(body: str, key: str) -> list[str]:
    """The values of a trailer such as `Hook-In: a, b`, in order."""
    found = re.findall(rf"^{key}: (.+)$", body, re.MULTILINE)
    return [part.strip() for value in found for part in value.split(",")]


HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)$")


def parse(name: str, text: str) -> Patch:
    """Read a patch file. Raises UserError, with file and line, for anything but insertions as `text` writes them."""
    head, _, diff = text.partition("\n---\n")
    subject = re.search(r"^Subject: \[PATCH\] (.+)$", head, re.MULTILINE)
    header = re.match(
        r"diff --git a/(\S+) b/\1\nindex ([0-9a-f]{40})\.\.([0-9a-f]{40}) 100644\n--- a/\1\n\+\+\+ b/\1\n", diff
    )
    if not subject or not header:
        raise UserError(f"patches/{name}: not one patch of one file with full blob ids (write it with export-patches)")
    body = head[subject.end() :].strip("\n")
    hunks: list[tuple[int, list[str]]] = []
    first_line = head.count("\n") + 2 + header.group(0).count("\n")
    for number, line in enumerate(diff[header.end() :].removesuffix("\n").split("\n"), first_line + 1):
        match = HUNK.match(line)
        if match and match.group(2) == "0" and not match.group(5):
            hunks.append((int(match.group(1)), []))
        elif hunks and line.startswith("+"):
            hunks[-1][1].append(line[1:])
        else:
            raise UserError(f"patches/{name}:{number}: only inserted lines may stand here, without context: {line!r}")
    made, before = [], 0
    for after, lines in hunks:
        made.append(Hunk(after, after + 1 + before, tuple(lines)))
        before += len(lines)
    patch = Patch(name, subject.group(1), body, *header.groups(), tuple(made))
    pairs = zip_longest(text.split("\n"), patch.text().split("\n"))
    for number, (line, right) in enumerate(pairs, 1):
        if line != right:
            raise UserError(f"patches/{name}:{number}: {line!r} should be {right!r} (write it with export-patches)")
    return patch


def insert(old: str, hunks: Sequence[Hunk]) -> str:
    """`old` with the hunks' lines inserted."""
    lines = old.split("\n")  # not splitlines: to git a form feed ends no line
    for hunk in reversed(hunks):
        lines[hunk.after : hunk.after] = hunk.lines
    return "\n".join(lines)


def insertions(old: str, new: str) -> list[Hunk] | None:
    """The hunks that turn `old` into `new`, or None if that takes more than inserting lines."""
    with tempfile.TemporaryDirectory() as folder:
        a, b = Path(folder, "a"), Path(folder, "b")
        a.write_text(old, newline="")
        b.write_text(new, newline="")
        # --minimal: git's quick diff may delete and add again where inserting would do.
        command = ["git", "diff", "--no-index", "-U0", "--minimal", "--no-color", "--no-ext-diff", "--text"]
        diff = subprocess.run([*command, str(a), str(b)], capture_output=True).stdout.decode()
    hunks: list[tuple[int, int, list[str]]] = []
    for line in diff.removesuffix("\n").split("\n")[4:]:
        match = HUNK.match(line)
        if match:
            if match.group(2) != "0":
                return None
            hunks.append((int(match.group(1)), int(match.group(3)), []))
        elif line.startswith("+"):
            hunks[-1][2].append(line[1:])
        else:
            return None
    return [Hunk(after, start, tuple(lines)) for after, start, lines in hunks]


def functions_of(source: str) -> list[tuple[str, int, int]]:
    """(qualified name, first line, last line) of every function in a Python file, decorators included."""
    found = []

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                    found.append((name, first, child.end_lineno or child.lineno))
                walk(child, f"{name}.")
            else:
                walk(child, prefix)

    walk(ast.parse(source), "")
    return found


def function_at(source: str, line: int) -> str:
    """The innermost function around a line, `module` outside of all."""
    around = [(last - first, name) for name, first, last in functions_of(source) if first <= line <= last]
    return min(around)[1] if around else "module"


def misplaced(patch: Patch, hunks: Sequence[Hunk], new: str) -> str | None:
    """What is wrong with where a patch's lines stand in the new file, in words; None if all is well."""
    try:
        names = [name for name, _, _ in functions_of(new)]
    except SyntaxError as error:
        return f"the file is no valid Python any more (line {error.lineno})"
    for function in patch.functions:
        if function != "module" and names.count(function) != 1:
            return f"there {'is no' if function not in names else 'is more than one'} {function} in {patch.path}"
    if sorted(line for hunk in hunks for line in hunk.lines) != sorted(patch.lines):
        return "the lines that came out are not the patch's"
    stand = [function_at(new, hunk.start + offset) for hunk in hunks for offset in range(len(hunk.lines))]
    wrong = [name for name in stand if name not in patch.functions]
    if wrong:
        return f"a line came to stand in {wrong[0]}, not in {' or '.join(patch.functions)}"
    missing = [name for name in patch.functions if name not in stand]
    return f"no line came to stand in {missing[0]}" if missing else None
