"""The command line of the patch series; see the package's docstring."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from htgrpo_ext.errors import UserError
from htgrpo_ext.maskgrpo import patches
from htgrpo_ext.maskgrpo.patches.checkout import Checkout, get, is_checked_out
from htgrpo_ext.maskgrpo.patches.checks import check
from htgrpo_ext.maskgrpo.patches.series import Series, export, rebase, require_applied, switch


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a user's mistake is one `error:` line and exit code 2."""
    about = (patches.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m {patches.__name__}", description=about)
    parser.add_argument("action", choices=["get", "applied", "apply", "unapply", "check", "export", "rebase"])
    parser.add_argument("--url", help="where to clone MaskGRPO from, instead of .gitmodules' address (get, apply)")
    parser.add_argument("--to", help="commit or tag to move the series to (rebase)")
    parser.add_argument("--continue", dest="resume", action="store_true", help="go on after an edit by hand (rebase)")
    parser.add_argument("--root", type=Path, default=Path("."), help="the project's folder")
    given = parser.parse_args(arguments)
    try:
        print(run(given.action, given.root, given.url, given.to, given.resume))
    except (UserError, OSError) as error:
        print(*(f"error: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
        sys.exit(2)


def run(action: str, root: Path, url: str | None = None, to: str | None = None, resume: bool = False) -> str:
    """One action; returns what to tell the user. Raises UserError.

    Applying brings MaskGRPO first where upstream/ is empty, and touches nothing there otherwise.
    """
    if action == "applied":
        return require_applied(root)
    series = Series.load(root / "patches")
    if action == "get":
        return get(root / "upstream", url, series.base)
    if action == "check":
        return check(series, root)
    if action == "apply" and not is_checked_out(root / "upstream"):
        print(get(root / "upstream", url, series.base), flush=True)
    checkout = Checkout(root / "upstream")
    if action == "export":
        return export(checkout, series)
    if action == "rebase":
        return rebase(checkout, series, to, resume)
    return switch(checkout, series, on=action == "apply")


if __name__ == "__main__":
    main()
