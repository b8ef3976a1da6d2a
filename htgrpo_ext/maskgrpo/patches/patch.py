"""A patch file."""

import re
from dataclasses import dataclass

from htgrpo_ext.errors import UserError

MAIL = (
    f"From {'0' * 40} Mon Sep 17 00:00:00 2001\nFrom: HT-GRPO <patches@htgrpo.invalid>\n"
    "Date: Thu, 1 Jan 2026 00:00:00 +0000\nSubject: [PATCH] "
)
FORM = re.compile(
    rf"{re.escape(MAIL)}(?P<message>[\s\S]+?)\n---\n"
    r"diff --git a/(?P<path>\S+) b/(?P=path)\nindex [0-9a-f]{40}\.\.(?P<blob>[0-9a-f]{40}) 100(?:644|755)\n"
    r"--- a/(?P=path)\n\+\+\+ b/(?P=path)\n(?P<hunks>(?:@@ -\d+,0 \+\d+(?:,\d+)? @@\n|\+[^\n]*\n)*)"
)


@dataclass(frozen=True)
class Patch:
    """A patch of one file. `blob` is the id of what it makes of it."""

    name: str
    text: str
    message: str
    path: str
    blob: str
    hunks: str

    @property
    def lines(self) -> list[tuple[int, str]]:
        """(number in the new file, text) of each line that it inserts."""
        found = re.findall(r"^@@ \S+ \+(\d+).*\n((?:\+[^\n]*\n)+)", self.hunks, re.MULTILINE)
        return [(int(at) + i, row[1:]) for at, rows in found for i, row in enumerate(rows.split("\n")[:-1])]

    @property
    def texts(self) -> list[str]:
        return [text.removesuffix("\r") for _, text in self.lines]

    def trailer(self, key: str) -> list[str]:
        """The values of a trailer such as `Hook-In: a, b`, in order."""
        found = re.findall(rf"^{key}: (.+)$", self.message, re.MULTILINE)
        return [part.strip() for value in found for part in value.split(",")]


def parse(name: str, text: str) -> Patch:
    """Read a patch file. Raises UserError, with the line, for anything but insertions without context or heading."""
    form = FORM.match(text)
    if not form:
        raise UserError(f"patches/{name}: not one patch of one file with full blob ids (write it with export-patches)")
    if form.end() < len(text):
        row, number = text[form.end() :].split("\n")[0], form[0].count("\n") + 1
        raise UserError(f"patches/{name}:{number}: a patch only inserts lines, into one file, without context: {row!r}")
    return Patch(name, text, **form.groupdict())
