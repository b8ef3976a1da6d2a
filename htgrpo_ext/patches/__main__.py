"""The command line of the patch series; see the package's docstring."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from htgrpo_ext import patches
from htgrpo_ext.errors import UserError
from htgrpo_ext.patches.checkout import Checkout, get
from htgrpo_ext.patches.checks import faults
from htgrpo_ext.patches.series import Series, apply, chain, export, rebase, require_applied, require_base, unapply


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a user's mistake is one `error:` line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m htgrpo_ext.patches", description=patches.__doc__.splitlines()[0])
    parser.add_argument("action", choices=["get", "applied", "apply", "unapply", "check", "export", "rebase"])
    parser.add_argument("--url", help="where to clone MaskGRPO from, instead of .gitmodules' address (get)")
    parser.add_argument("--to", help="commit or tag to move the series to (rebase)")
    parser.add_argument("--continue", dest="resume", action="store_true", help="go on after an edit by hand (rebase)")
    parser.add_argument("--root", type=Path, default=Path("."), help="the project's folder")
    given = parser.parse_args(arguments)
    try:
        print(run(given.action, given.root, given.url, given.to, given.resume))
    except UserError as error:
        print(*(f"error: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
        sys.exit(2)


def run(action: str, root: Path, url: str | None, to: str | None, resume: bool) -> str:
    """One action; returns what to tell the user. Raises UserError."""
    series = Series.load(root / "patches")
    upstream = root / "upstream"
    if action == "check":
        if found := faults(series, root):
            raise UserError("\n".join(found))
        told = f"{len(series.patches)} patches, {sum(len(p.lines) for p in series.patches)} lines, all insertions"
        if not (upstream / ".git").exists():
            return f"{told}; not tried on upstream/, which is empty (make upstream)"
        require_base(checkout := Checkout(upstream), series)
        chain(checkout, series)
        return f"{told}; exact on {series.base[:12]}"
    if action == "get":
        return get(upstream, url, series.base)
    if action == "applied":
        require_applied(root)
        return f"{len(series.patches)} patches are applied"
    checkout = Checkout(upstream)
    if action == "apply":
        return apply(checkout, series)
    if action == "unapply":
        return unapply(checkout, series)
    if action == "rebase":
        if not to:
            raise UserError("rebase-patches needs TO=COMMIT")
        new = rebase(checkout, series, to, resume)
        new.save()
        return (
            f"moved {len(new.patches)} patches to {new.base[:12]}. "
            "Run the tests; then make unapply-patches, git add upstream patches, git commit"
        )
    new = export(checkout, series)
    new.save()
    for name in {patch.name for patch in series.patches} - {patch.name for patch in new.patches}:
        (series.folder / name).unlink()
    return f"wrote {len(new.patches)} patches"


if __name__ == "__main__":
    main()
