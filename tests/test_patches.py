"""The patch tool on an upstream made here: exact on its base, and never silently elsewhere after a move."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from upstream_moves import assert_moved, assert_stops, commit, function_text, git, renamed

from helpers.paths import ROOT
from htgrpo_ext.errors import UserError
from htgrpo_ext.patches.__main__ import run
from htgrpo_ext.patches.checkout import Checkout, get
from htgrpo_ext.patches.checks import call_faults, faults
from htgrpo_ext.patches.patch import Hunk, function_at, insert, insertions, parse
from htgrpo_ext.patches.series import Series, apply, export, unapply

PATH = "loop/walker.py"


def body(name: str) -> str:
    return "".join(f"        {name}_{i} = self.step({i})\n" for i in range(20))


SOURCE = (
    '"""A walker."""\n\nimport math\nimport os\n\n\nclass Walker:\n'
    "    def step(self, i):\n        return math.pi + i\n\n"
    f"    def roll(self):\n{body('roll')}        return roll_3\n\n"
    f"    def loss(self):\n{body('loss')}        return loss_3\n\n    def last(self):\n        return os.sep\n"
)
HOOKS = [
    ("import hooks", "module, Walker.roll", {"import os": "import extra", "        roll_9 =": "        roll_8 += 1"}),
    ("loss: change five", "Walker.loss", {"        loss_6 =": "        loss_5 *= 2"}),
    ("loss: change twelve", "Walker.loss", {"        loss_13 =": "        loss_12 *= 3\n        loss_11 *= 4"}),
]
NAMES = ["0001-import-hooks.patch", "0002-loss-change-five.patch", "0003-loss-change-twelve.patch"]


@pytest.fixture
def project(tmp_path):
    """patches/ with three patches, exported from commits on a repository in upstream/, which is at their end."""
    upstream, folder = tmp_path / "upstream", tmp_path / "patches"
    folder.mkdir()
    (upstream / "loop").mkdir(parents=True)
    git(upstream, "init", "--quiet")
    (upstream / PATH).write_text(SOURCE)
    (upstream / "picture.png").write_text("a picture")
    git(upstream, "add", ".")
    git(upstream, "commit", "--quiet", "-m", "base")
    base = head = git(upstream, "rev-parse", "HEAD")
    (folder / "series").write_text(f"# Three.\n# base: {base}\n")
    text = SOURCE
    for subject, where, hooks in HOOKS:
        for before, line in hooks.items():
            text = text.replace(before, f"{line}\n{before}", 1)
        message = f"{subject}\n\nWhy.\n\nNot-A-Subclass: it\nHook-In: {where}\nGuarded-By: tests/test_a.py::test_a"
        head = commit(upstream, head, {PATH: text}, message)
    git(upstream, "checkout", "--quiet", "--detach", head)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_a():\n    pass\n")
    run("export", tmp_path, None, None, False)
    return tmp_path


@pytest.fixture
def upstream(project):
    return Checkout(project / "upstream")


@pytest.fixture
def series(project):
    return Series.load(project / "patches")


def contents(series: Series) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in series.folder.iterdir()}


def test_exported_patches_are_gits_own_diff_without_context(upstream, series):
    assert [patch.name for patch in series.patches] == NAMES
    commits = git(upstream.root, "rev-list", "--reverse", f"{series.base}..HEAD").splitlines()
    for patch, made in zip(series.patches, commits, strict=True):
        diff = git(upstream.root, "diff", "-U0", "--full-index", f"{made}~", made).split("\n")
        bare = [f"{row[: row.index(' @@')]} @@" if row.startswith("@@") else row for row in diff]
        assert patch.text().split("\n---\n")[1] == "\n".join(bare) + "\n"


def test_applying_is_exact_and_harmless_twice_and_unapplying_restores_the_tree(upstream, series):
    before, head, text = contents(series), upstream.head, (upstream.root / PATH).read_text()
    assert unapply(upstream, series) == f"back at {series.base[:12]}"
    assert upstream.head == series.base and (upstream.root / PATH).read_text() == SOURCE
    assert git(upstream.root, "status", "--porcelain") == git(upstream.root, "diff", "HEAD") == ""
    assert unapply(upstream, series) == "no patch is applied"
    assert "applied 3 patches" in apply(upstream, series)
    first = upstream.head
    assert (upstream.root / PATH).read_text() == text
    assert git(upstream.root, "rev-parse", f"HEAD:{PATH}") == series.patches[-1].new_blob
    assert git(upstream.root, "diff", head) == ""
    assert apply(upstream, series) == "3 patches are applied already" and upstream.head == first
    export(upstream, series).save()
    assert contents(series) == before


def test_export_refuses_a_base_without_patches_and_commits_that_do_more_than_insert(upstream, series):
    unapply(upstream, series)
    with pytest.raises(UserError, match="no commit on top"):
        export(upstream, series)
    for text in (SOURCE.replace("import os\n", ""), SOURCE.replace("import os", "import os, sys")):
        upstream.move(commit(upstream.root, series.base, {PATH: text}))
        with pytest.raises(UserError, match="does more than insert"):
            export(upstream, series)
    upstream.move(commit(upstream.root, series.base, {PATH: SOURCE + "a = 1\n", "picture.png": "b"}))
    with pytest.raises(UserError, match="changes 2 files"):
        export(upstream, series)


@pytest.mark.parametrize("act", [apply, unapply, export])
def test_a_dirty_tree_is_refused(upstream, series, act):
    (upstream.root / PATH).write_text("mine = 1\n")
    with pytest.raises(UserError, match=f"{PATH} has changes of its own"):
        act(upstream, series)
    assert (upstream.root / PATH).read_text() == "mine = 1\n"


def test_a_checkout_elsewhere_is_refused(upstream, series):
    other = commit(upstream.root, series.base, {PATH: SOURCE + "a = 1\n"})
    upstream.move(other)
    for act, words in ((apply, f"rebase-patches TO={other[:12]}"), (unapply, "not the series")):
        with pytest.raises(UserError, match=words):
            act(upstream, series)
        assert upstream.head == other


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("+        loss_5", " import os\n+        loss_5"),
        ("+        loss_5", "-import os\n+        loss_5"),
        ("0 +43 @@", "0 +43 @@ class Walker:"),
        ("0 +43 @@", "0 +44 @@"),
        ("0 +43 @@", "0 +43,2 @@"),
        ("0 +43 @@", "1 +43 @@"),
    ],
)
def test_anything_but_exact_insertions_is_refused_with_file_and_line(series, old, new):
    text = series.patches[1].text()
    assert text.count(old) == 1
    changed = text.replace(old, new)
    rows = zip(text.split("\n"), changed.split("\n"), strict=False)
    number = next(number for number, (a, b) in enumerate(rows, 1) if a != b)
    with pytest.raises(UserError, match=rf"patches/0002-a\.patch:{number}: "):
        parse("0002-a.patch", changed)


def test_a_tampered_line_number_is_refused(upstream, series):
    unapply(upstream, series)
    file = series.folder / NAMES[1]
    file.write_text(file.read_text().replace("@@ -42,0 +43 @@", "@@ -43,0 +44 @@"))
    with pytest.raises(UserError, match="does not give the loop/walker.py that it records"):
        apply(upstream, Series.load(series.folder))
    assert upstream.head == series.base


def test_series_and_files_must_agree(series):
    (series.folder / "0009-more.patch").write_text("")
    with pytest.raises(UserError, match="0009-more.patch is not listed"):
        Series.load(series.folder)
    (series.folder / "0009-more.patch").unlink()
    (series.folder / NAMES[2]).unlink()
    with pytest.raises(UserError, match=f"{NAMES[2]} is listed in series, but there is no such file"):
        Series.load(series.folder)


def test_faults_of_budget_and_trailers_are_told(project, series):
    assert faults(series, project) == []
    assert any("9 patches" in fault for fault in faults(replace(series, patches=series.patches * 3), project))
    long = replace(series.patches[0], hunks=(Hunk(1, 2, ("a = 1",) * 61),))
    assert any("61 lines" in fault for fault in faults(replace(series, patches=(long,)), project))
    bare = replace(series, patches=(replace(series.patches[0], body="Why."),))
    for key in ("Not-A-Subclass", "Hook-In", "Guarded-By"):
        assert any(f"`{key}:`" in fault for fault in faults(bare, project))
    (project / "tests" / "test_a.py").write_text("")
    assert f"patches/{NAMES[0]}: there is no test tests/test_a.py::test_a" in faults(series, project)


def test_calls_that_hooks_does_not_have_are_told():
    assert call_faults(["    n = hooks.image_tokens(self, n)", "import os"]) == []
    for line in ("n = hooks.nothing(self)", "n = hooks.credit(self, n)", "hooks.credit(self, 1, 2, other=3)"):
        assert len(call_faults([line])) == 1
    assert call_faults(["if hooks.credit(self, 1, 2):"]) == ["`if hooks.credit(self, 1, 2):` is no whole statement"]


LINES = st.lists(st.text(st.sampled_from("ab \x0c\r\u2028"), max_size=3), max_size=12)


@given(LINES, st.dictionaries(st.integers(0, 12), LINES.filter(bool), min_size=1, max_size=3))
def test_insertions_finds_what_insert_did(rows, added):
    assume(all(after <= len(rows) for after in added))
    old = "".join(f"{row}\n" for row in rows)
    hunks = [Hunk(after, 0, tuple(lines)) for after, lines in sorted(added.items())]
    new = insert(old, hunks)
    found = insertions(old, new)
    assert found is not None and insert(old, found) == new
    assert sum(len(hunk.lines) for hunk in found) == sum(map(len, added.values()))
    for hunk in found:  # `start` is where they begin in the new file
        assert tuple(new.split("\n")[hunk.start - 1 : hunk.start - 1 + len(hunk.lines)]) == hunk.lines


def test_function_at_names_the_innermost_function():
    rows = [
        ("import os", "module"),
        ("@decorator(", "outer"),
        ("    1)", "outer"),
        ("def outer():", "outer"),
        ("    @other", "outer.inner"),
        ("    def inner():", "outer.inner"),
        ("        return 1", "outer.inner"),
        ("    return 2", "outer"),
        ("class A:", "module"),
        ("    x = 1", "module"),
        ("    async def run(self):", "A.run"),
        ("        if self:", "A.run"),
        ("            def deep(): return 3", "A.run.deep"),
        ("    class B:", "module"),
        ("        def run(self): pass", "A.B.run"),
    ]
    source = "\n".join(row for row, _ in rows)
    assert [function_at(source, number) for number in range(1, len(rows) + 1)] == [name for _, name in rows]


# Simulated moves of upstream.


def test_unrelated_lines_above_every_hook_are_merged(project, upstream, series):
    text = '"""More."""\n' + SOURCE.replace("        roll_2 =", "        other = 1\n        roll_2 =")
    text = text.replace("        loss_1 =", "        other = 1\n        loss_1 =").replace("loss_9", "loss_nine")
    target = commit(upstream.root, series.base, {PATH: text})
    new = assert_moved(upstream, series, target, PATH)
    new.save()
    assert "applied already" in apply(upstream, Series.load(series.folder))
    run("unapply", project, None, None, False)
    assert upstream.head == target


def test_a_renamed_function_stops_and_goes_on_when_the_patches_name_it(project, upstream, series):
    target = commit(upstream.root, series.base, {PATH: renamed(SOURCE, "loss", "objective")})
    assert_stops(upstream, series, target, NAMES[1], PATH, "Walker.loss", "there is no Walker.loss")
    for name in NAMES[1:]:
        file = series.folder / name
        file.write_text(file.read_text().replace("Walker.loss", "Walker.objective"))
    assert "moved 3 patches" in run("rebase", project, None, target, True)
    assert "applied already" in run("apply", project, None, None, False)
    assert Series.load(series.folder).base == target


def test_rewritten_neighbours_stop_and_go_on_after_two_edits_by_hand(project, upstream, series):
    text = SOURCE.replace("loss_5 = self.step(5)", "loss_5 = self.step(50)")
    text = text.replace("loss_12 = self.step(12)", "loss_12 = self.step(120)")
    target = commit(upstream.root, series.base, {PATH: text})
    with pytest.raises(UserError, match="start it without CONTINUE=1"):
        run("rebase", project, None, target, True)
    assert_stops(upstream, series, target, NAMES[1], "Walker.loss", "conflict")
    file, before = upstream.root / PATH, contents(series)

    file.write_text(file.read_text().replace("        roll_6 =", "        loss_5 *= 2\n        roll_6 ="))
    with pytest.raises(UserError, match="a line came to stand in Walker.roll, not in Walker.loss"):
        run("rebase", project, None, target, True)
    wrong = file.read_text().replace("        loss_5 *= 2\n", "")
    file.write_text(wrong.replace("        loss_6 =", "        loss_5 *= 2\n        loss_6 ="))
    with pytest.raises(UserError, match=NAMES[2]):
        run("rebase", project, None, target, True)
    assert contents(series) == before and not upstream.changed_files()
    added = "        loss_12 *= 3\n        loss_11 *= 4\n"
    file.write_text(file.read_text().replace("        loss_13 =", f"{added}        loss_13 ="))
    assert "moved 3 patches" in run("rebase", project, None, target, True)
    assert not upstream.changed_files()
    assert "applied already" in run("apply", project, None, None, False)
    assert "exact" in run("check", project, None, None, False)


@pytest.mark.parametrize("name", ["loss", "old_loss"])
def test_a_duplicate_below_an_edited_original_stops(upstream, series, name):
    original = function_text(SOURCE, "loss")
    edited = "    def loss(self):\n        return self.step(1)\n"
    copy = original.replace("def loss(", f"def {name}(")
    target = commit(upstream.root, series.base, {PATH: SOURCE.replace(original, f"{edited}\n{copy}")})
    assert_stops(upstream, series, target, NAMES[1], PATH, "Walker.loss")


def test_a_renamed_file_stops(upstream, series):
    target = commit(upstream.root, series.base, {PATH: None, "loop/other.py": SOURCE})
    assert_stops(upstream, series, target, NAMES[0], f"there is no {PATH} any more")


def test_a_target_that_is_not_there_is_refused(upstream, series):
    with pytest.raises(UserError, match="has no commit `nowhere`"):
        run("rebase", upstream.root.parent, None, "nowhere", False)


# The repository's own series, and getting upstream.


def test_our_series_has_no_fault_and_no_context():
    series = Series.load(ROOT / "patches")
    assert faults(series, ROOT) == [] and series.patches
    for patch in series.patches:
        diff = (series.folder / patch.name).read_text().split("\n---\n")[1].splitlines()[4:]
        assert all(row.startswith("+") or (row.startswith("@@ -") and row.endswith(" @@")) for row in diff)


def test_an_empty_upstream_is_one_line(project):
    (project / "empty").mkdir()
    (project / "patches").rename(project / "empty" / "patches")
    (project / "empty" / "upstream").mkdir()
    command = [sys.executable, "-m", "htgrpo_ext.patches", "apply", "--root", str(project / "empty")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "make upstream" in done.stderr


def test_get_from_a_mirror_that_may_lack_a_picture_but_no_code(project, upstream, series):
    assert get(project / "a", str(upstream.root), series.base) == f"{project}/a/ is at {series.base[:12]}"
    assert (project / "a" / PATH).read_text() == SOURCE
    for path in ("picture.png", PATH):
        blob = git(upstream.root, "rev-parse", f"{series.base}:{path}")
        (upstream.root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
        if path == "picture.png":
            assert "the mirror lacks picture.png" in get(project / "b", str(upstream.root), series.base)
            assert "applied 3" in apply(Checkout(project / "b"), series)
    with pytest.raises(UserError, match="walker.py cannot be read"):
        get(project / "c", str(upstream.root), series.base)
    with pytest.raises(UserError, match="cannot be cloned"):
        get(project / "d", str(project / "nothing"), series.base)
