"""What can be checked of the series without upstream: budget, trailers, pinned commit, and the hooks it calls."""

import ast
import inspect
from pathlib import Path

from htgrpo_ext.errors import UserError
from htgrpo_ext.maskgrpo import hooks
from htgrpo_ext.maskgrpo.patches.checkout import Checkout, run_git
from htgrpo_ext.maskgrpo.patches.series import Series, chain

MAX_PATCHES, MAX_LINES = 6, 60
TRAILERS = ("Not-A-Subclass", "Hook-In", "Hook-After", "Hook-Before", "Guarded-By")


def check(series: Series, root: Path) -> str:
    """Raises UserError with every fault of the files, a line each, or if the series is not exact on upstream/."""
    if found := faults(series, root):
        raise UserError("\n".join(found))
    told = f"{len(series.patches)} patches, {sum(len(patch.lines) for patch in series.patches)} lines, all insertions"
    if not (root / "upstream" / ".git").exists():
        return f"{told}; not tried on upstream/, which is empty (make upstream)"
    chain(Checkout(root / "upstream"), series)
    return f"{told}; exact on {series.base[:12]}"


def faults(series: Series, root: Path) -> list[str]:
    """What is wrong with the series as files, one line each."""
    count, lines = len(series.patches), sum(len(patch.lines) for patch in series.patches)
    found = []
    if count > MAX_PATCHES or lines > MAX_LINES:
        found.append(f"{count} patches with {lines} lines; at most {MAX_PATCHES} with {MAX_LINES} in all")
    try:
        pinned = run_git(root, "ls-files", "-s", "upstream").split()
    except UserError:  # a copy of the files, without git
        pinned = []
    if pinned and pinned[1] != series.base:
        found.append(f"patches/series: base {series.base[:12]}, but upstream is pinned to {pinned[1][:12]}")
    for patch in series.patches:
        wrong = [f"no `{key}:` line in its body" for key in TRAILERS if not patch.trailer(key)]
        for test in patch.trailer("Guarded-By"):
            file, _, name = test.partition("::")
            if not (root / file).is_file() or f"def {name}(" not in (root / file).read_text():
                wrong.append(f"there is no test {test}")
        wrong += [fault for line in patch.texts if (fault := call_fault(line.strip()))]
        found += [f"patches/{patch.name}: {fault}" for fault in wrong]
    return found


def call_fault(line: str) -> str | None:
    """What is wrong with a line: no statement, or a call of a hook that is not there or takes other arguments."""
    try:
        for call in ast.walk(ast.parse(line)):
            if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("hooks."):
                hook = getattr(hooks, ast.unparse(call.func).removeprefix("hooks."))
                inspect.signature(hook).bind(*call.args, **{str(key.arg): key.value for key in call.keywords})
    except SyntaxError:
        return f"`{line}` is no whole statement"
    except (AttributeError, TypeError) as error:
        return f"`{line}` does not fit {hooks.__name__} ({error})"
    return None
