"""The series on the checkout: its commits, apply and unapply, export, and the move to another commit of upstream."""

import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from htgrpo_ext.errors import UserError
from htgrpo_ext.patches.checkout import Checkout
from htgrpo_ext.patches.patch import Patch, insert, insertions, misplaced, parse


@dataclass(frozen=True)
class Series:
    """patches/series: its base (a commit of upstream) and its patches, in order."""

    folder: Path
    base: str
    patches: tuple[Patch, ...]

    @classmethod
    def load(cls, folder: Path) -> "Series":
        """Raises UserError if the list and the files do not agree, or a file is no insert-only patch."""
        listed, base = [], None
        for line in (folder / "series").read_text().splitlines():
            if line.startswith("# base: "):
                base = line.removeprefix("# base: ").strip()
            elif line.strip() and not line.startswith("#"):
                listed.append(line.strip())
        if base is None or not re.fullmatch("[0-9a-f]{40}", base):
            raise UserError(f"{folder}/series: the line `# base: COMMIT` with a full commit id is missing")
        there = sorted(path.name for path in folder.glob("*.patch"))
        for name in sorted(set(listed) ^ set(there)):
            what = "is listed in series, but there is no such file" if name in listed else "is not listed in series"
            raise UserError(f"{folder}/{name} {what}")
        return cls(folder, base, tuple(parse(name, (folder / name).read_text()) for name in listed))

    def save(self) -> None:
        names = "".join(f"{patch.name}\n" for patch in self.patches)
        comments = [line for line in (self.folder / "series").read_text().splitlines() if line.startswith("#")]
        comments = [f"# base: {self.base}" if line.startswith("# base: ") else line for line in comments]
        (self.folder / "series").write_text("\n".join(comments) + "\n" + names)
        for patch in self.patches:
            (self.folder / patch.name).write_text(patch.text())


def chain(checkout: Checkout, series: Series, placed: bool = True) -> list[str]:
    """The commits of the series on its own base, exact to the blob. Raises UserError where they cannot be.

    placed  the lines must stand in the functions of Hook-In
    """
    commits = [series.base]
    for patch in series.patches:
        blob = checkout.blob_of(commits[-1], patch.path)
        if blob != patch.old_blob:
            raise UserError(f"patches/{patch.name} was made from another {patch.path} than base and series give")
        new_blob = checkout.write(insert(checkout.read(blob), patch.hunks))
        if new_blob != patch.new_blob:
            raise UserError(f"patches/{patch.name} does not give the {patch.path} that it records")
        if placed and (fault := misplaced(patch, patch.hunks, checkout.read(new_blob))):
            raise UserError(f"patches/{patch.name}: {fault}")
        commits.append(checkout.commit(commits[-1], patch.path, new_blob, patch.message))
    return commits


def require_base(checkout: Checkout, series: Series) -> None:
    if checkout.commit_of(series.base) is None:
        raise UserError(f"{checkout.root}/ lacks MaskGRPO's commit {series.base}: run `make upstream`")


def refuse_changes(checkout: Checkout) -> None:
    if changed := checkout.changed_files():
        raise UserError(f"{checkout.root}/{changed[0]} has changes of its own: commit, stash or restore them first")


def apply(checkout: Checkout, series: Series) -> str:
    """Bring the checkout from base to base plus series; harmless when it is there already."""
    require_base(checkout, series)
    commits = chain(checkout, series)
    refuse_changes(checkout)
    if checkout.head == commits[-1]:
        return f"{len(series.patches)} patches are applied already"
    if checkout.head != series.base:
        raise UserError(
            f"{checkout.root}/ is at {checkout.head[:12]}, neither the base nor the series; `make upstream` resets it, "
            f"`make rebase-patches TO={checkout.head[:12]}` moves the series there"
        )
    checkout.move(commits[-1])
    return f"applied {len(series.patches)} patches to {series.base[:12]}"


def unapply(checkout: Checkout, series: Series) -> str:
    """Bring the checkout back to the base."""
    require_base(checkout, series)
    refuse_changes(checkout)
    if checkout.head == series.base:
        return "no patch is applied"
    if checkout.head != chain(checkout, series)[-1]:
        raise UserError(f"{checkout.root}/ holds commits that are not the series; save them with export-patches first")
    checkout.move(series.base)
    return f"back at {series.base[:12]}"


def export(checkout: Checkout, series: Series) -> Series:
    """The series as the commits on top of the base now are; each must be one insert-only change of one file."""
    require_base(checkout, series)
    refuse_changes(checkout)
    patches = patches_on(checkout, series, series.base)
    if not patches:
        raise UserError(f"{checkout.root}/ has no commit on top of {series.base[:12]}: run `make apply-patches` first")
    return replace(series, patches=tuple(patches))


def patches_on(checkout: Checkout, series: Series, base: str) -> list[Patch]:
    """The commits from `base` to HEAD as patches, with the names that the series has for their subjects."""
    names = {patch.subject: patch.name for patch in series.patches}
    commits = checkout.git("rev-list", "--reverse", f"{base}..HEAD").splitlines()
    patches, parent = [], base
    for number, commit in enumerate(commits, 1):
        subject, _, body = checkout.git("show", "-s", "--format=%B", commit).partition("\n")
        if subject in {patch.subject for patch in patches}:
            raise UserError(f"two commits have the subject `{subject}`: each patch needs its own")
        name = names.get(subject) or f"{number:04d}-{re.sub('[^a-z0-9]+', '-', subject.lower()).strip('-')[:50]}.patch"
        paths = checkout.git("diff", "--name-only", parent, commit).splitlines()
        if len(paths) != 1:
            raise UserError(f"commit {commit[:12]} ({subject}) changes {len(paths)} files; a patch changes one")
        blobs = [checkout.blob_of(side, paths[0]) for side in (parent, commit)]
        hunks = insertions(*map(checkout.read, blobs)) if all(blobs) else None
        if not hunks:
            raise UserError(f"commit {commit[:12]} ({subject}) does more than insert lines into a file")
        patch = Patch(name, subject, body.strip("\n"), paths[0], *blobs, tuple(hunks))
        if fault := misplaced(patch, hunks, checkout.read(blobs[1])):
            raise UserError(f"commit {commit[:12]} ({subject}): {fault}")
        patches.append(patch)
        parent = commit
    return patches


def merge(checkout: Checkout, ours: str, base: str, theirs: str) -> str | None:
    """A three-way merge of three blobs, as text; None on a conflict."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("ours", "base", "theirs")]
        for file, blob in zip(files, (ours, base, theirs), strict=True):
            file.write_text(checkout.read(blob), newline="")
        done = subprocess.run(["git", "merge-file", "-p", "--quiet", *map(str, files)], capture_output=True)
    return done.stdout.decode() if done.returncode == 0 else None


def moved(checkout: Checkout, patch: Patch, onto: str, by_hand: str | None) -> tuple[str, Patch]:
    """The commit that a patch becomes on another parent, and the patch as it then is.

    by_hand  the file as somebody edited it, taken where the merge fails

    Raises UserError, with the reason, where neither gives the patch's own lines in the functions it names.
    """
    ours = checkout.blob_of(onto, patch.path)
    if ours is None:
        raise UserError(f"there is no {patch.path} any more")
    old, fault = checkout.read(ours), "its neighbouring lines have changed (conflict)"
    for new in (merge(checkout, ours, patch.old_blob, patch.new_blob), by_hand):
        if new is None:
            continue
        hunks = insertions(old, new)
        if not hunks:
            fault = "the merge did not insert its lines, or changed others"
            continue
        fault = misplaced(patch, hunks, new)
        if fault is None:
            blob = checkout.write(new)
            commit = checkout.commit(onto, patch.path, blob, patch.message)
            return commit, replace(patch, old_blob=ours, new_blob=blob, hunks=tuple(hunks))
    raise UserError(fault)


def stopped_with(checkout: Checkout, series: Series, target: str) -> list[Patch]:
    """The patches that an earlier try moved before it stopped. Raises UserError if no try stopped here."""
    if checkout.is_ancestor(target, "HEAD"):
        patches = patches_on(checkout, series, target)
        if [patch.name for patch in patches] == [patch.name for patch in series.patches[: len(patches)]]:
            return patches
    raise UserError(f"{checkout.root}/ is not where a move to {target[:12]} stopped: start it without CONTINUE=1")


def rebase(checkout: Checkout, series: Series, to: str, resume: bool) -> Series:
    """Move the series to another commit of upstream: the new series, with the checkout at its end.

    resume  an earlier try stopped here, with the patches that it moved as commits on the target; what somebody was
            asked to edit is there, uncommitted

    Where a patch cannot be moved, the checkout is left with those before it, and the error says what to do.
    """
    require_base(checkout, series)
    # The clone's own branches stay behind when it fetches.
    target = checkout.commit_of(f"origin/{to}") or checkout.commit_of(to)
    if target is None:
        raise UserError(f"{checkout.root}/ has no commit `{to}`: `git -C {checkout.root} fetch` it first")
    # Writes the blobs that the merges need. Hook-In may have been changed to what the target has.
    chain(checkout, series, placed=not resume)
    if resume:
        commit, patches = checkout.head, stopped_with(checkout, series, target)
    else:
        refuse_changes(checkout)
        commit, patches = target, []
    for patch in series.patches[len(patches) :]:
        file = checkout.root / patch.path
        edited = resume and patch.path in checkout.changed_files() and file.exists()
        try:
            commit, now = moved(checkout, patch, commit, file.read_text() if edited else None)
        except UserError as error:
            if checkout.head != commit:
                refuse_changes(checkout)
                checkout.move(commit)
            raise UserError(
                f"patches/{patch.name} does not go onto {target[:12]}: {patch.path}, {', '.join(patch.functions)}: "
                f"{error}. Put its lines there by hand (change Hook-In in the patch if the function has a new name), "
                f"without committing, then: make rebase-patches TO={to} CONTINUE=1"
            ) from None
        if edited and checkout.write(file.read_text()) == now.new_blob:
            checkout.git("checkout", "--quiet", "HEAD", "--", patch.path)  # it is in `commit` now
        patches.append(now)
    refuse_changes(checkout)
    checkout.move(commit)
    return replace(series, base=target, patches=tuple(patches))


def require_applied(root: Path) -> None:
    """Raises UserError unless the checkout in the project's folder `root` is the base with the series on it."""
    checkout, series = Checkout(root / "upstream"), Series.load(root / "patches")
    if checkout.commit_of(series.base) is None or checkout.head != chain(checkout, series)[-1]:
        raise UserError(f"{root / 'upstream'}/ is not the pinned MaskGRPO with its patches: make apply-patches")
