"""The git checkout in upstream/, through git's plumbing: nothing here moves it but `move`."""

import os
import subprocess
import tempfile
from pathlib import Path

from htgrpo_ext.errors import UserError

IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "HT-GRPO"), ("EMAIL", "patches@htgrpo.invalid"), ("DATE", "2026-01-01T00:00:00Z"))
}


class Checkout:
    """The git checkout in upstream/."""

    def __init__(self, root: Path):
        self.root = root
        if not (root / ".git").exists():
            raise UserError(f"{root}/ is empty: get MaskGRPO with `make upstream` (or UPSTREAM_URL=/path/or/url)")

    def git(self, *arguments: str, input: str | None = None, index: Path | None = None) -> str:
        """git's output, without the last newline; raises CalledProcessError."""
        env = {**os.environ, **IDENTITY} | ({"GIT_INDEX_FILE": str(index)} if index else {})
        command = ["git", "-C", str(self.root), *arguments]
        done = subprocess.run(command, input=input, env=env, capture_output=True, text=True, check=True)
        return done.stdout.removesuffix("\n")

    def commit_of(self, name: str) -> str | None:
        try:
            return self.git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        except subprocess.CalledProcessError:
            return None

    def blob_of(self, commit: str, path: str) -> str | None:
        try:
            return self.git("rev-parse", "--verify", "--quiet", f"{commit}:{path}")
        except subprocess.CalledProcessError:
            return None

    def read(self, blob: str) -> str:
        done = subprocess.run(["git", "-C", str(self.root), "cat-file", "blob", blob], capture_output=True, check=True)
        return done.stdout.decode()

    def write(self, text: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(self.root), "hash-object", "-w", "--stdin"], input=text.encode(), capture_output=True
        )
        return done.stdout.decode().strip()

    def commit(self, parent: str, path: str, blob: str, message: str) -> str:
        """A commit on `parent` that differs from it in one file."""
        with tempfile.TemporaryDirectory() as folder:
            index = Path(folder, "index")
            self.git("read-tree", parent, index=index)
            self.git("update-index", "--cacheinfo", f"100644,{blob},{path}", index=index)
            tree = self.git("write-tree", "--missing-ok", index=index)
        return self.git("commit-tree", tree, "-p", parent, input=message)

    def is_ancestor(self, ancestor: str, commit: str) -> bool:
        return not self.git("rev-list", "--max-count=1", ancestor, f"^{commit}")

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def changed_files(self) -> list[str]:
        return [line[3:] for line in self.git("status", "--porcelain", "--ignore-submodules").splitlines()]

    def tracked_files_there(self) -> bool:
        """Whether anything is checked out at all."""
        return bool(self.git("ls-files"))

    def move(self, commit: str) -> None:
        """Check a commit out. Raises UserError when git cannot; then the checkout stays where it was."""
        try:
            self.git("checkout", "--quiet", "--detach", commit)
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or ["git failed"])[-1]
            raise UserError(f"{self.root}/ cannot be brought to {commit} ({reason})") from None


def get(root: Path, url: str | None, commit: str) -> str:
    """Bring `commit` of MaskGRPO into root (upstream/), from `url` or else the address in .gitmodules.

    A mirror may lack large files that nothing here needs: they are named and left out. Raises UserError when the
    mirror or the commit cannot be had, or code is missing.
    """
    if url is None:
        command = ["git", "config", "-f", str(root.parent / ".gitmodules"), "submodule.upstream.url"]
        url = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not (root / ".git").exists():
        cloned = subprocess.run(["git", "clone", "--quiet", "--no-checkout", url, str(root)], stderr=subprocess.PIPE)
        if cloned.returncode:
            raise UserError(
                f"{url} cannot be cloned ({cloned.stderr.decode().strip().splitlines()[-1]}); "
                "name a mirror: make upstream UPSTREAM_URL=/path/or/url"
            )
    checkout = Checkout(root)
    if checkout.commit_of(commit) is None:
        try:
            checkout.git("fetch", "--quiet", url, commit)
        except subprocess.CalledProcessError as error:
            raise UserError(f"{url} does not have commit {commit} ({error.stderr.strip()})") from None
    elif checkout.tracked_files_there() and checkout.head == commit:
        return f"{root}/ is at {commit[:12]}"
    checkout.move(commit)
    if missing := checkout.git("ls-files", "--deleted").splitlines():
        if any(path.endswith(".py") for path in missing):
            raise UserError(f"{url} is incomplete: {missing[0]} cannot be read; take another mirror")
        checkout.git("update-index", "--skip-worktree", "--", *missing)
        return f"{root}/ is at {commit[:12]}; the mirror lacks {', '.join(missing)}"
    return f"{root}/ is at {commit[:12]}"
