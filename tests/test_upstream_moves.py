"""Our own series on simulated moves of MaskGRPO, in a clone of upstream/: it merges right, or stops and says where."""

import shutil

import pytest
from upstream_moves import assert_moved, assert_stops, commit, function_text, git, renamed

from helpers.paths import ROOT
from htgrpo_ext.patches.__main__ import run
from htgrpo_ext.patches.checkout import Checkout, get
from htgrpo_ext.patches.series import Series

SERIES = Series.load(ROOT / "patches")
PATH = SERIES.patches[0].path
NAMES = [patch.name for patch in SERIES.patches]
HOOKED = {"_generate_and_score_completions": NAMES[0], "compute_loss": NAMES[2]}


def absent() -> str | None:
    there = (ROOT / "upstream" / ".git").exists() and Checkout(ROOT / "upstream").commit_of(SERIES.base)
    return None if there else "upstream/ is empty: make upstream"


pytestmark = [pytest.mark.upstream, pytest.mark.skipif(absent() is not None, reason=str(absent()))]


@pytest.fixture
def project(tmp_path):
    get(tmp_path / "upstream", str(ROOT / "upstream"), SERIES.base)
    shutil.copytree(ROOT / "patches", tmp_path / "patches")
    return tmp_path


@pytest.fixture
def upstream(project):
    return Checkout(project / "upstream")


@pytest.fixture
def series(project):
    return Series.load(project / "patches")


@pytest.fixture
def source(upstream, series):
    return git(upstream.root, "show", f"{series.base}:{PATH}") + "\n"


def move(upstream: Checkout, series: Series, text: str) -> str:
    return commit(upstream.root, series.base, {PATH: text})


def neighbours(series: Series) -> list[tuple[str, str, int]]:
    """(patch, function, line of the pristine file before which it inserts, from 0), but for the import."""
    found, before = [], 0
    for patch in series.patches:
        for hunk in patch.hunks:
            if hunk.lines[0].startswith(" "):
                found.append((patch.name, patch.functions[-1], hunk.start - 1 - before))
            before += len(hunk.lines)
    return found


def test_unrelated_lines_above_every_hook_are_merged(project, upstream, series, source):
    rows = source.split("\n")
    anchors = [line for _, _, line in neighbours(series)]
    assert len(anchors) == 4
    for line in sorted(anchors, reverse=True):
        above = line - 4
        while not rows[above].strip():
            above -= 1
        rows.insert(above, "# moved on")
    target = move(upstream, series, "\n".join(["# moved on"] * 7 + rows))
    new = assert_moved(upstream, series, target, PATH)
    new.save()
    assert "applied already" in run("apply", project, None, None, False)


@pytest.mark.parametrize("function", HOOKED)
def test_a_renamed_function_stops(upstream, series, source, function):
    target = move(upstream, series, renamed(source, function, "other"))
    assert_stops(upstream, series, target, HOOKED[function], PATH, f"there is no MaskGRPOTrainer.{function}")


def test_patches_that_name_the_new_function_go_on(project, upstream, series, source):
    target = move(upstream, series, renamed(source, "compute_loss", "other"))
    assert_stops(upstream, series, target, NAMES[2])
    for name in NAMES[2:]:
        file = series.folder / name
        file.write_text(file.read_text().replace("Trainer.compute_loss", "Trainer.other"))
    assert "moved 4 patches" in run("rebase", project, None, target, True)
    assert "applied already" in run("apply", project, None, None, False)


@pytest.mark.parametrize("side", [-1, 0])
@pytest.mark.parametrize("which", range(4))
def test_a_rewritten_neighbour_stops_and_goes_on_after_an_edit_by_hand(project, upstream, series, source, which, side):
    name, function, line = neighbours(series)[which]
    rows = source.split("\n")
    rows[line + side] += "  # rewritten"
    target = move(upstream, series, "\n".join(rows))
    assert_stops(upstream, series, target, name, PATH, function, "conflict")

    patch = series.patches[NAMES.index(name)]
    added = [row for row in patch.lines if row.startswith(" ")]
    if len(added) < len(patch.lines):
        rows = [*rows[: patch.hunks[0].after], *patch.hunks[0].lines, *rows[patch.hunks[0].after :]]
        line += 1
    else:
        rows = (upstream.root / PATH).read_text().split("\n")  # with the patches before it
        line = next(number for number, row in enumerate(rows) if row.endswith("  # rewritten")) - side
    (upstream.root / PATH).write_text("\n".join(rows[:line] + added + rows[line:]))
    assert "moved 4 patches" in run("rebase", project, None, target, True)
    ours = {row for patch in series.patches for row in patch.lines}
    kept = [row for row in (upstream.root / PATH).read_text().split("\n") if row not in ours]
    assert "\n".join(kept) == git(upstream.root, "show", f"{target}:{PATH}") + "\n"
    assert "applied already" in run("apply", project, None, None, False)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("function", HOOKED)
def test_a_duplicate_below_an_edited_original_stops(upstream, series, source, function, same):
    original = function_text(source, function)
    hooked = [line for _, name, line in neighbours(series) if name.endswith(f".{function}")]
    assert hooked and all(source.split("\n")[line] in original for line in hooked)
    edited = f"    def {function}(self, *arguments, **keywords):\n        return self.copy(*arguments, **keywords)\n"
    copy = original if same else original.replace(f"def {function}(", "def copy(", 1)
    target = move(upstream, series, source.replace(original, f"{edited}\n{copy}"))
    assert_stops(upstream, series, target, HOOKED[function], PATH, function)


def test_a_renamed_file_stops(upstream, series, source):
    target = commit(upstream.root, series.base, {PATH: None, "grpo/renamed.py": source})
    assert_stops(upstream, series, target, NAMES[0], f"there is no {PATH} any more")
