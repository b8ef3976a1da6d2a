"""The series on the checkout: its commits, apply and unapply, export, and the move to another commit of upstream."""

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from htgrpo_ext.errors import UserError
from htgrpo_ext.maskgrpo.patches.checkout import Checkout
from htgrpo_ext.maskgrpo.patches.patch import MAIL, Patch, parse
from htgrpo_ext.maskgrpo.patches.placement import misplaced

INSERT = ("apply", "--cached", "--unidiff-zero", "--whitespace=nowarn")
# --minimal: git's quick diff may delete and add again where inserting would do.
DIFF = "diff-tree -p -U0 --full-index --minimal --no-renames --no-ext-diff --no-textconv --text".split()  # noqa: SIM905


@dataclass(frozen=True)
class Series:
    """patches/series: its base (a commit of upstream) and its patches, in order."""

    folder: Path
    base: str
    patches: list[Patch]

    @classmethod
    def load(cls, folder: Path) -> "Series":
        """Raises UserError if the list and the files do not agree, or a file is no insert-only patch."""
        try:
            texts = {file.name: file.read_bytes().decode(errors="surrogateescape") for file in folder.glob("*.patch")}
            listing = (folder / "series").read_text(errors="replace")
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; `git checkout {folder}` restores it") from None
        listed = re.findall("^[^#\n]+$", listing, re.MULTILINE)
        base = re.search("^# base: ([0-9a-f]{40})$", listing, re.MULTILINE)
        if not base:
            raise UserError(f"{folder}/series: the line `# base: COMMIT` with a full commit id is missing")
        for name in sorted(texts.keys() ^ set(listed)):
            what = "is not listed in series" if name in texts else "is listed in series, but there is no such file"
            raise UserError(f"{folder}/{name} {what}")
        return cls(folder, base[1], [parse(name, texts[name]) for name in listed])

    def save(self) -> None:
        title = (self.folder / "series").read_text().partition("# base: ")[0]
        names = [patch.name for patch in self.patches]
        for patch in self.patches:
            (self.folder / patch.name).write_bytes(patch.text.encode(errors="surrogateescape"))
        (self.folder / "series").write_text("\n".join([f"{title}# base: {self.base}", *names, ""]))
        for file in self.folder.glob("*.patch"):
            if file.name not in names:
                file.unlink()


def chain(checkout: Checkout, series: Series, placed: bool = True) -> str:
    """The last commit of the series on its own base, exact to the blob. Raises UserError where that cannot be.

    placed  the lines must stand in the functions of Hook-In
    """
    if not checkout.find(commit := series.base):
        raise UserError(f"{checkout.root}/ lacks MaskGRPO's commit {commit}: run `make upstream`")
    for patch in series.patches:
        fault = f"does not give the {patch.path} that it records"
        try:
            commit = checkout.commit(commit, patch.message, *INSERT, input=patch.text)
        except UserError as error:
            fault = f"{fault}: {error}"
        if checkout.find(f"{commit}:{patch.path}") == patch.blob:
            fault = misplaced(patch, checkout.git("cat-file", "blob", patch.blob)) if placed else None
        if fault:
            raise UserError(f"patches/{patch.name}: {fault}")
    return commit


def switch(checkout: Checkout, series: Series, on: bool) -> str:
    """Bring the checkout to base plus series, or back to base; harmless when it is there already."""
    end, head = chain(checkout, series), str(checkout.find("HEAD"))
    goal = end if on else series.base
    checkout.refuse_changes()
    if head not in (series.base, end):
        raise UserError(
            f"{checkout.root}/ is at {head[:12]}, neither the base nor the series: `make export-patches` saves commits "
            f"on the base, `make rebase-patches TO={head[:12]}` moves the series there, `make upstream` goes back"
        )
    told = f"{len(series.patches)} patches are applied" if on else f"back at {series.base[:12]}, without patches"
    if head == goal:
        return f"{told} already"
    checkout.move(goal)
    return told


def require_applied(root: Path) -> str:
    """Raises UserError unless the checkout in the project's folder `root` is the base with the series on it."""
    checkout, series = Checkout(root / "upstream"), Series.load(root / "patches")
    if not checkout.find(series.base) or checkout.find("HEAD") != chain(checkout, series):
        raise UserError(f"{checkout.root}/ is not the pinned MaskGRPO with its patches: make apply-patches")
    return f"{len(series.patches)} patches are applied"


def patch_of(checkout: Checkout, series: Series, parent: str, commit: str, number: int) -> Patch:
    """A commit as a patch. Raises UserError if it does more than insert lines into the functions that it names."""
    message = checkout.git("show", "-s", "--format=%B", commit).strip()
    subject = message.split("\n")[0]
    name = f"{number:04d}-{re.sub('[^a-z0-9]+', '-', subject.lower())[:50].strip('-')}.patch"
    name = next((patch.name for patch in series.patches if patch.message.startswith(f"{subject}\n")), name)
    # The heading behind @@ would quote upstream.
    diff = re.sub("^(@@ .*? @@).*", r"\1", checkout.git(*DIFF, parent, commit), flags=re.MULTILINE)
    patch = parse(name, f"{MAIL}{message}\n---\n{diff}\n")
    if fault := misplaced(patch, checkout.git("cat-file", "blob", patch.blob)):
        raise UserError(f"patches/{name}: {fault}")
    return patch


def patches_on(checkout: Checkout, series: Series, base: str) -> list[Patch]:
    """The commits from `base` to HEAD as patches, with the names that the series has for their subjects."""
    commits = [base, *checkout.git("rev-list", "--reverse", f"{base}..HEAD").split()]
    patches = [patch_of(checkout, series, *pair, number) for number, pair in enumerate(pairwise(commits), 1)]
    if len({patch.name for patch in patches}) < len(patches):
        raise UserError(f"{checkout.root}/: two commits have the same subject; each patch needs its own")
    return patches


def export(checkout: Checkout, series: Series) -> str:
    """Save the commits on the base as the series; each must be one insert-only change of one file."""
    checkout.refuse_changes()
    if not (patches := patches_on(checkout, series, series.base)):
        raise UserError(f"{checkout.root}/ has no commit on top of {series.base[:12]}: run `make apply-patches` first")
    new = replace(series, patches=patches)
    new.save()
    checkout.move(chain(checkout, new))  # the same files, under the tool's own author and date
    return f"wrote {len(patches)} patches"


def rebase(checkout: Checkout, series: Series, to: str | None, resume: bool) -> str:
    """Move the series to another commit of upstream, and the checkout with it.

    resume  an earlier try stopped: the patches that it moved are commits on the target; what somebody was asked to edit
            is there, uncommitted

    Where a patch cannot be moved, the checkout is left with those before it, and the error says what to do.
    """
    if not to:
        raise UserError("rebase-patches needs TO=COMMIT")
    # Writes the blobs that the merges need. Hook-In may have been changed to what the target has.
    end = chain(checkout, series, placed=not resume)
    # The clone's own branches stay behind when it fetches.
    target = checkout.find(f"origin/{to}") or checkout.find(to)
    if not target:
        raise UserError(f"{checkout.root}/ has no commit `{to}`: `git -C {checkout.root} fetch` it first")
    if not resume:
        checkout.refuse_changes()
        checkout.refuse_unsaved(end, target)
        checkout.move(target)
    here = not checkout.git("rev-list", "-1", target, "^HEAD")
    done = patches_on(checkout, series, target) if here else []
    if not here or [patch.message for patch in done] != [patch.message for patch in series.patches[: len(done)]]:
        raise UserError(f"{checkout.root}/ is not where a move to {to} stopped: start it without CONTINUE=1")
    for number, patch in enumerate(series.patches[len(done) :], len(done) + 1):
        edited = checkout.files("diff", "--name-only", "HEAD") if resume else []
        change = ("update-index", "--", *edited) if edited else (*INSERT, "--3way")
        try:
            commit = checkout.commit("HEAD", patch.message, *change, input=patch.text)
            if sorted(patch_of(checkout, series, "HEAD", commit, number).texts) != sorted(patch.texts):
                raise UserError("other lines than the patch's came out")
        except UserError as error:
            where = f"{patch.path}, {', '.join(patch.trailer('Hook-In'))}"
            reason = "its neighbouring lines have changed (conflict)" if "with conflicts" in str(error) else error
            raise UserError(
                f"patches/{patch.name} does not go onto {target[:12]}: {where}: {reason}. Put its lines there by hand "
                "(change Hook-In in the patch if the function has a new name), without committing, then: "
                f"make rebase-patches TO={to} CONTINUE=1"
            ) from None
        if edited:  # they are in `commit`
            checkout.git("checkout", "--quiet", "HEAD", "--", *edited)
        checkout.move(commit)
    replace(series, base=target, patches=patches_on(checkout, series, target)).save()
    return (
        f"moved {len(series.patches)} patches to {target[:12]}. "
        "Run the tests; then make unapply-patches, git add upstream patches, git commit"
    )
