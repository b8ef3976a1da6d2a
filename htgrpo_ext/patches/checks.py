"""What can be checked of the series without upstream: budget, trailers, pinned commit, and the names it calls."""

import ast
import importlib
import inspect
import subprocess
from collections.abc import Sequence
from pathlib import Path

from htgrpo_ext.patches.patch import trailer
from htgrpo_ext.patches.series import Series

MAX_PATCHES, MAX_LINES = 6, 60
HOOK_MODULE = "htgrpo_ext.train.hooks"


def faults(series: Series, root: Path) -> list[str]:
    """What is wrong with the series as files, one line each: budget, names it calls, trailers, pinned commit."""
    found = []
    lines = [line for patch in series.patches for line in patch.lines]
    if len(series.patches) > MAX_PATCHES or len(lines) > MAX_LINES:
        found.append(
            f"{len(series.patches)} patches with {len(lines)} lines; at most {MAX_PATCHES} with {MAX_LINES} in all"
        )
    pinned = subprocess.run(["git", "-C", str(root), "ls-files", "-s", "upstream"], capture_output=True, text=True)
    if pinned.returncode == 0 and pinned.stdout and pinned.stdout.split()[1] != series.base:
        found.append(
            f"patches/series: base {series.base[:12]}, but upstream is pinned to {pinned.stdout.split()[1][:12]}"
        )
    for patch in series.patches:
        for key in ("Not-A-Subclass", "Hook-In", "Guarded-By"):
            if not trailer(patch.body, key):
                found.append(f"patches/{patch.name}: no `{key}:` line in its body")
        for test in trailer(patch.body, "Guarded-By"):
            file, _, name = test.partition("::")
            if not (root / file).is_file() or f"def {name}(" not in (root / file).read_text():
                found.append(f"patches/{patch.name}: there is no test {test}")
        found += [f"patches/{patch.name}: {fault}" for fault in call_faults(patch.lines)]
    return found


def call_faults(lines: Sequence[str]) -> list[str]:
    """Calls of `hooks.NAME(...)` in inserted lines that the module does not have, or not with such arguments."""
    module, found = importlib.import_module(HOOK_MODULE), []
    for line in lines:
        try:
            statement = ast.parse(line.strip())
        except SyntaxError:
            found.append(f"`{line.strip()}` is no whole statement")
            continue
        for call in (node for node in ast.walk(statement) if isinstance(node, ast.Call)):
            if not (isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "hooks"):
                continue
            function = getattr(module, call.func.attr, None)
            try:
                inspect.signature(function).bind(*call.args, **{k.arg: k.value for k in call.keywords})
            except TypeError as error:
                found.append(f"`{ast.unparse(call)}` does not fit {HOOK_MODULE} ({error})")
    return found
