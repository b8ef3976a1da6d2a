"""Scripts of a benchmark's authors, run unmodified: a checkout at a pinned commit, a Python with what they need, a log.

A script that fails, says nothing or whose kernels do not run on this GPU is refused, whatever its exit code.
"""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from PIL import Image

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.imagesets.base import Item
from htgrpo_ext.imagesets.scorers.base import Known, Scorer

ENVIRONMENTS = Path(".venv-eval")  # where launch/eval/*.sh put environments and checkouts
KERNEL_FAULTS = re.compile(
    r"no kernel image|not compiled with (?:GPU|CUDA)|implementation for device cuda\S* not found"
    r"|CUDA (?:runtime )?error|CUDA driver version|CUBLAS_STATUS|CUDNN_STATUS|cudnn error|out of memory"
    r"|not compatible with the current PyTorch|device-side assert|illegal memory access",
    re.IGNORECASE,
)
VERSIONS = """
import importlib.metadata, sys
for package in importlib.metadata.distributions():
    if package.metadata["Name"] in sys.argv[1:]:
        print(package.metadata["Name"], package.version)
"""


class Official(Scorer):
    """A scorer that runs a script of `checkout` by `python`."""

    whole = True

    checkout: Path
    python: Path
    commit: str  # what the checkout must be at; "any": whatever it is, such as a stand-in of your own

    script: ClassVar[str]  # in the checkout
    setup: ClassVar[str]  # the command that makes environment and checkout
    packages: ClassVar[tuple[str, ...]]  # whose versions are noted

    def prepare(self) -> dict:
        if not (self.checkout / self.script).is_file():
            raise UserError(f"scorer {self.name}: {self.checkout} has no {self.script} ({self.setup} --setup-only)")
        if not self.python.is_file():
            raise UserError(f"scorer {self.name}: no Python at {self.python} ({self.setup} --setup-only)")
        commit = self._git("rev-parse", "HEAD")
        changed = self._git("status", "--porcelain", "--untracked-files=no")
        if self.commit != "any" and (commit != self.commit or changed):
            what = "is changed" if changed and commit == self.commit else f"is at {commit or 'no commit'}"
            raise UserError(
                f"scorer {self.name}: {self.checkout} {what}, not at {self.commit} ({self.setup} --setup-only, or "
                "--set commit=any)"
            )
        asked = subprocess.run([self.python, "-c", VERSIONS, *self.packages], capture_output=True, text=True)
        return {"commit": commit or None, "versions": dict(line.split(" ", 1) for line in asked.stdout.splitlines())}

    def picture_of(self, path: Path, item: Item, metric: str) -> list[Known]:
        """A calibration picture of which `metric` must be 1. Only a stand-in (commit "any") may lack it."""
        if path.is_file():
            with Image.open(path) as image:
                return [Known(item._replace(key=path.name), image.convert("RGB"), {metric: (1, 1)})]
        if self.commit == "any":
            return []
        raise UserError(f"scorer {self.name}: no calibration picture {path} ({self.setup} --setup-only)")

    def _git(self, *arguments: str) -> str:
        """What git says of the checkout; "" if it is none."""
        if not (self.checkout / ".git").exists():
            return ""
        done = subprocess.run(["git", "-C", str(self.checkout), *arguments], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    def run(self, command: Sequence[str | Path], log: Path, wrote: Path) -> str:
        """Run a command in the checkout; returns its log. `wrote` is the file that it must write.

        Raises UserError for a failure, for a log with a kernel's failure, and if nothing was written.
        """
        with log.open("w") as file:
            code = subprocess.run(
                [str(part) for part in command], cwd=self.checkout, stdout=file, stderr=subprocess.STDOUT, check=False
            ).returncode
        said = log.read_text(encoding="utf-8", errors="replace")
        if fault := KERNEL_FAULTS.search(said):
            start, end = said.rfind("\n", 0, fault.start()) + 1, said.find("\n", fault.end())
            line = one_line(said[start : end if end >= 0 else None].strip())
            raise UserError(f"scorer {self.name}: its kernels do not run on this machine: {line} ({log})")
        if code:
            last = one_line(said.strip().rpartition("\n")[2]) or "it said nothing"
            raise UserError(f"scorer {self.name}: {self.script} ended with exit code {code}: {last} ({log})")
        if not wrote.is_file() or not wrote.read_text(encoding="utf-8", errors="replace").strip():
            raise UserError(f"scorer {self.name}: {self.script} ended without an error and wrote nothing ({log})")
        return said
