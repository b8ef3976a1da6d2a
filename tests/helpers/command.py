"""The `htgrpo` command inside a test's process."""

import sys

import pytest

from htgrpo_ext import cli


def run(monkeypatch, *arguments: str) -> int:
    """The exit code of `htgrpo ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["htgrpo", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code or 0
