"""Git in upstream/, and in no other repository: each call names it, whatever the environment says."""

import os
import subprocess
import tempfile
from pathlib import Path

from htgrpo_ext.errors import UserError

EMAIL = "patches@htgrpo.invalid"
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "HT-GRPO"), ("EMAIL", EMAIL), ("DATE", "2026-01-01T00:00:00Z"))
}
# How to reach a server, and configuration. Other GIT_* variables may name another repository, index or format of diffs.
KEPT = ("GIT_ASKPASS", "GIT_CONFIG", "GIT_HTTP", "GIT_PROXY", "GIT_SSH", "GIT_SSL", "GIT_TERMINAL_PROMPT")


def run_git(folder: Path, *arguments: str, input: str = "", **environment: str) -> str:
    """git's output without its last newline. Raises UserError with what git said, on one line."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or key.startswith(KEPT)}
    command, env = ["git", "-C", str(folder), *arguments], {**kept, "LC_ALL": "C", **environment}
    done = subprocess.run(command, input=input.encode(errors="surrogateescape"), env=env, capture_output=True)
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())[:500]
        raise UserError(f"{folder}/: git {arguments[0]}: {said or 'failed'}")
    return done.stdout.decode(errors="surrogateescape").removesuffix("\n")


def repository(folder: Path, **environment: str) -> Path | None:
    """The git directory that git uses in a folder, None if there is none."""
    try:
        return Path(run_git(folder, "rev-parse", "--path-format=absolute", "--git-common-dir", **environment)).resolve()
    except UserError:
        return None


class Checkout:
    """The git checkout in upstream/. Raises UserError if that is no repository of its own, or when git fails."""

    def __init__(self, root: Path):
        self.root = root
        if not (root / ".git").exists():
            raise UserError(f"{root}/ is empty: get MaskGRPO with `make upstream` (or UPSTREAM_URL=/path/or/url)")
        # Without them, git looks for a repository further up: the project's.
        self.environment = IDENTITY | {"GIT_DIR": f"{root.absolute()}/.git", "GIT_WORK_TREE": f"{root.absolute()}"}
        if repository(root, **self.environment) in (None, repository(root.parent)):
            raise UserError(f"{root}/ is not a git repository of its own (a broken clone?): remove it; make upstream")

    def git(self, *arguments: str, input: str = "", **environment: str) -> str:
        return run_git(self.root, *arguments, input=input, **self.environment, **environment)

    def find(self, name: str) -> str | None:
        """The full id of a commit (`main`) or a blob (`main:file`), None if there is none."""
        try:
            return self.git("rev-parse", "--verify", "--quiet", name if ":" in name else f"{name}^{{commit}}")
        except UserError:
            return None

    def files(self, *command: str) -> list[str]:
        """The paths that a git command lists."""
        return [path for path in self.git(*command, "-z").split("\0") if path]

    def commit(self, parent: str, message: str, *change: str, input: str = "") -> str:
        """A commit on `parent` after a git command on its index. Blobs of other files may be missing."""
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": f"{folder}/index"}
            self.git("read-tree", parent, **index)
            self.git(*change, input=input, **index)
            tree = self.git("write-tree", "--missing-ok", **index)
        return self.git("commit-tree", tree, "-p", parent, input=f"{message}\n")

    def refuse_changes(self) -> None:
        if changed := self.files("status", "--porcelain", "--ignore-submodules"):
            raise UserError(f"{self.root}/{changed[0][3:]} has changes of its own: commit, stash or restore them first")

    def refuse_unsaved(self, *saved: str) -> None:
        """Raises UserError if somebody else's commits would be lost when HEAD moves: only HEAD leads to them."""
        command = ("log", "--format=%ce %h `%s`", "HEAD", "--not", *saved, "--branches", "--remotes", "--tags")
        rows = self.git(*command).splitlines() if self.find("HEAD") else []
        if lost := [row for row in rows if not row.startswith(EMAIL)]:  # the tool makes its own again
            commit = lost[0].partition(" ")[2]
            raise UserError(
                f"{self.root}/ holds a commit that is in no patch and on no branch, {commit}: save it first with "
                f"`make export-patches`, or `git -C {self.root} branch NAME`"
            )

    def move(self, commit: str) -> None:
        self.git("checkout", "--quiet", "--detach", commit)


def is_checked_out(root: Path) -> bool:
    """Whether there are files of MaskGRPO; not before `get`, nor after one that was stopped between clone and files.

    Raises UserError if root holds a broken repository.
    """
    return (root / ".git").exists() and bool(Checkout(root).files("ls-files"))


def get(root: Path, url: str | None, commit: str) -> str:
    """Bring `commit` of MaskGRPO into root (upstream/), from `url` or else the address in .gitmodules.

    A mirror may lack large files that nothing here needs: they are named and left out. Code must be there.
    """
    url = url or run_git(root.parent, "config", "-f", ".gitmodules", "submodule.upstream.url")
    url = str((root.parent / url).absolute()) if (root.parent / url).exists() else url
    if not (root / ".git").exists():
        print(f"{root}/ is empty: cloning MaskGRPO from {url}, once", flush=True)
        try:
            run_git(root.parent, "clone", "--quiet", "--no-checkout", url, str(root.absolute()))
        except UserError as error:
            raise UserError(f"{url} cannot be cloned; name a mirror: make upstream UPSTREAM_URL=.. ({error})") from None
    checkout = Checkout(root)
    if not checkout.find(commit):
        checkout.git("fetch", "--quiet", url, commit)
    elif checkout.find("HEAD") == commit and checkout.files("ls-files"):
        return f"{root}/ is at {commit[:12]}"
    checkout.refuse_unsaved(commit)
    checkout.move(commit)
    missing = checkout.files("ls-files", "--deleted")
    for path in missing:
        if path.endswith(".py"):
            raise UserError(f"{url} is incomplete: {path} cannot be read; take another mirror")
        checkout.git("update-index", "--skip-worktree", "--", path)
    lacks = ", ".join(missing).encode(errors="replace").decode()
    return f"{root}/ is at {commit[:12]}" + (f"; the mirror lacks {lacks}" if missing else "")
