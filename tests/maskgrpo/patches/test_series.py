"""The patch series on its own base: exact there, or refused; and getting upstream."""

import ast
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.upstream_moves import NAMES, PATH, ROOT, SOURCE, Project, commit, git, made_here
from htgrpo_ext.errors import UserError
from htgrpo_ext.maskgrpo.patches.__main__ import run
from htgrpo_ext.maskgrpo.patches.checkout import get
from htgrpo_ext.maskgrpo.patches.checks import call_fault, faults
from htgrpo_ext.maskgrpo.patches.patch import parse
from htgrpo_ext.maskgrpo.patches.placement import function_at
from htgrpo_ext.maskgrpo.patches.series import Series


@pytest.fixture
def project(tmp_path) -> Project:
    return made_here(tmp_path)


def test_exported_patches_are_gits_own_diff_without_context(project):
    assert project.names == NAMES
    commits = git(project.upstream, "rev-list", "--reverse", f"{project.series.base}..HEAD").splitlines()
    for patch, made in zip(project.series.patches, commits, strict=True):
        diff = git(project.upstream, "diff", "-U0", "--full-index", f"{made}~", made).split("\n")
        bare = [f"{row[: row.index(' @@')]} @@" if row.startswith("@@") else row for row in diff]
        assert patch.text.split("\n---\n")[1] == "\n".join(bare) + "\n"


def test_apply_is_exact_and_harmless_twice_and_unapply_restores_the_tree(project):
    before, head, text, base = project.contents(), project.head, project.file.read_text(), project.series.base
    assert project.run("unapply") == f"back at {base[:12]}, without patches"
    assert project.head == base and project.file.read_text() == SOURCE
    assert project.changed == git(project.upstream, "diff", "HEAD") == ""
    assert project.run("unapply").endswith("without patches already")
    assert project.run("apply") == "4 patches are applied" and project.run("applied") == "4 patches are applied"
    first = project.head
    assert project.file.read_text() == text
    assert git(project.upstream, "rev-parse", f"HEAD:{PATH}") == project.series.patches[-1].blob
    assert git(project.upstream, "diff", head) == ""
    assert project.run("apply") == "4 patches are applied already" and project.head == first
    assert project.run("export") == "wrote 4 patches"
    assert project.contents() == before


def test_export_refuses_a_base_without_patches_and_commits_that_do_more_than_insert(project):
    project.run("unapply")
    project.refuses("export", "no commit on top")
    for text in (SOURCE.replace("import os\n", ""), SOURCE.replace("import os", "import os, sys")):
        git(project.upstream, "checkout", "--quiet", project.move(text))
        project.refuses("export", "a patch only inserts lines, into one file, without context: '(-import os|@@ -4 )")
    git(project.upstream, "checkout", "--quiet", project.move(SOURCE + "a = 1\n", **{"picture.png": "b\n"}))
    project.refuses("export", "a patch only inserts lines, into one file, without context: 'diff --git a/picture.png")


def test_export_keeps_names_of_patches_and_deletes_files_of_dropped_ones(project):
    (project.patches / NAMES[1]).rename(project.patches / "0002-five.patch")
    listing = (project.patches / "series").read_text()
    (project.patches / "series").write_text(listing.replace(NAMES[1], "0002-five.patch"))
    git(project.upstream, "checkout", "--quiet", "HEAD~2")
    assert project.run("export") == "wrote 2 patches"
    assert project.names == [NAMES[0], "0002-five.patch"] and len(project.contents()) == 3
    text = project.file.read_text().replace("import extra", "import extra\nimport hooks")
    twice = commit(project.upstream, project.head, {PATH: text}, "import hooks\n\nHook-In: module")
    git(project.upstream, "checkout", "--quiet", twice)
    project.refuses("export", "two commits have the same subject")


@pytest.mark.parametrize("action", ["apply", "unapply", "export", "rebase"])
def test_dirty_tree_is_refused(project, action):
    project.file.write_text("mine = 1\n")
    project.refuses(action, f"{PATH} has changes of its own", project.series.base)
    assert project.file.read_text() == "mine = 1\n"


def test_checkout_elsewhere_is_refused(project):
    other = project.move(SOURCE + "a = 1\n")
    git(project.upstream, "checkout", "--quiet", other)
    for action in ("apply", "unapply"):
        project.refuses(action, f"neither the base nor the series.* rebase-patches TO={other[:12]}")
    project.refuses("applied", "not the pinned MaskGRPO with its patches")
    assert project.head == other


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("+        loss_5", " import os\n+        loss_5"),
        ("+        loss_5", "-import os\n+        loss_5"),
        ("0 +43 @@", "0 +43 @@ class Walker:"),
        ("0 +43 @@", "1 +43 @@"),
    ],
)
def test_anything_but_insertions_is_refused_with_file_and_line(project, old, new):
    text = project.series.patches[1].text
    assert text.count(old) == 1
    changed = text.replace(old, new)
    rows = zip(text.split("\n"), changed.split("\n"), strict=False)
    number = next(number for number, (a, b) in enumerate(rows, 1) if a != b)
    with pytest.raises(UserError, match=rf"patches/0002-a\.patch:{number}: "):
        parse("0002-a.patch", changed)


@pytest.mark.parametrize("new", ["-43,0 +44 @@", "-42,0 +44 @@", "-42,0 +43,2 @@"])
def test_tampered_line_numbers_are_refused(project, new):
    project.run("unapply")
    file = project.patches / NAMES[1]
    text = file.read_text()
    assert "-42,0 +43 @@" in text
    file.write_text(text.replace("-42,0 +43 @@", new))
    project.refuses("apply", f"{NAMES[1]}: does not give the {PATH} that it records")
    assert project.head == project.series.base


def test_series_and_files_must_agree(project):
    (project.patches / "0009-more.patch").write_text("")
    project.refuses("check", "0009-more.patch is not listed")
    (project.patches / "0009-more.patch").unlink()
    (project.patches / NAMES[2]).unlink()
    project.refuses("check", f"{NAMES[2]} is listed in series, but there is no such file")


def test_faults_of_budget_and_trailers_are_told(project):
    series, root = project.series, project.root
    assert faults(series, root) == []
    assert any("12 patches" in fault for fault in faults(replace(series, patches=series.patches * 3), root))
    long = replace(series.patches[0], hunks="@@ -1,0 +2,61 @@\n" + "+a = 1\n" * 61)
    assert any("61 lines" in fault for fault in faults(replace(series, patches=[long]), root))
    bare = replace(series, patches=[replace(series.patches[0], message="Why.")])
    for key in ("Not-A-Subclass", "Hook-In", "Hook-After", "Hook-Before", "Guarded-By"):
        assert any(f"`{key}:`" in fault for fault in faults(bare, root))
    (root / "tests" / "test_a.py").write_text("")
    assert f"patches/{NAMES[0]}: there is no test tests/test_a.py::test_a" in faults(series, root)


def test_calls_that_hooks_does_not_have_are_told():
    assert call_fault("n = hooks.image_tokens(self, n)") is call_fault("import os") is None
    for line in ("n = hooks.nothing(self)", "n = hooks.credit(self, n)", "hooks.credit(self, 1, 2, other=3)"):
        assert f"`{line}` does not fit htgrpo_ext.maskgrpo.hooks" in str(call_fault(line))
    assert call_fault("if hooks.credit(self, 1, 2):") == "`if hooks.credit(self, 1, 2):` is no whole statement"


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Project:
    """Without patches."""
    project = made_here(tmp_path_factory.mktemp("project"))
    git(project.upstream, "checkout", "--quiet", project.series.base)
    for file in project.patches.glob("*.patch"):
        file.unlink()
    (project.patches / "series").write_text(f"# base: {project.head}\n")
    return project


ROWS = st.lists(st.sampled_from(["a = 1", "b = 2", "", "#\x0c", "# \u2028", "c = 3\r", "  # d"]), max_size=8)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.dictionaries(st.integers(0, 8), ROWS.filter(bool), min_size=1, max_size=3))
def test_what_was_exported_is_applied_at_the_same_lines(empty, rows, added):
    """Whatever the rows are, also where inserted lines repeat their neighbours: to git only \\n ends a line."""
    pairs = [(i, row) for i, row in enumerate([*rows, None]) for row in [*added.get(i, []), row] if row is not None]
    new = "".join(f"{row}\n" for _, row in pairs)
    count = len(pairs) - len(rows)
    if not count:
        return
    base = commit(
        empty.upstream,
        git(empty.upstream, "rev-list", "--max-parents=0", "HEAD"),
        {PATH: "".join(f"{row}\n" for row in rows)},
    )
    for file in empty.patches.glob("*.patch"):
        file.unlink()
    (empty.patches / "series").write_text(f"# base: {base}\n")
    git(empty.upstream, "checkout", "--quiet", commit(empty.upstream, base, {PATH: new}, "add\n\nHook-In: module"))
    empty.run("export")
    [patch] = empty.series.patches
    assert len(patch.lines) == count
    assert all(new.split("\n")[number - 1] == text for number, text in patch.lines)
    empty.run("unapply")
    empty.run("apply")
    assert empty.file.read_bytes().decode() == new


def test_innermost_function_around_a_line_is_named():
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
    tree = ast.parse("\n".join(row for row, _ in rows))
    assert [function_at(tree, number) for number in range(1, len(rows) + 1)] == [name for _, name in rows]


def test_our_series_has_no_fault_and_no_context():
    series = Series.load(ROOT / "patches")
    assert faults(series, ROOT) == [] and series.patches
    for patch in series.patches:
        diff = (series.folder / patch.name).read_text().split("\n---\n")[1].splitlines()[4:]
        assert all(row.startswith("+") or (row.startswith("@@ -") and row.endswith(" @@")) for row in diff)


def test_empty_upstream_is_one_line(project):
    git(project.root, "init", "--quiet")
    project.upstream.rename(project.root / "away")
    project.upstream.mkdir()
    command = [sys.executable, "-m", "htgrpo_ext.maskgrpo.patches", "unapply", "--root", str(project.root)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "make upstream" in done.stderr
    assert "not tried on upstream/, which is empty" in project.run("check")


@pytest.fixture
def absent(project) -> Project:
    """A project whose upstream/ is in away/, the address in .gitmodules."""
    project.upstream.rename(project.root / "away")
    (project.root / ".gitmodules").write_text('[submodule "upstream"]\n\tpath = upstream\n\turl = away\n')
    return project


@pytest.mark.parametrize("empty", [True, False])
def test_apply_brings_an_absent_upstream_and_says_so(absent, capsys, empty):
    if empty:  # as a clone of the project without its submodule leaves it
        absent.upstream.mkdir()
    assert run("apply", absent.root) == "4 patches are applied"
    said = capsys.readouterr().out.splitlines()
    assert "is empty: cloning MaskGRPO from" in said[0] and said[1].endswith(f"is at {absent.series.base[:12]}")
    assert run("applied", absent.root) == "4 patches are applied"
    assert run("apply", absent.root) == "4 patches are applied already" and capsys.readouterr().out == ""


def test_apply_goes_on_after_a_clone_that_was_stopped_before_its_files_came(absent):
    git(absent.root, "clone", "--quiet", "--no-checkout", "away", "upstream")
    assert run("apply", absent.root) == "4 patches are applied"


def test_failed_clone_leaves_nothing_and_can_be_repeated(absent):
    with pytest.raises(UserError, match="nowhere cannot be cloned"):
        run("apply", absent.root, "nowhere")
    assert not absent.upstream.exists()
    assert run("apply", absent.root, str(absent.root / "away")) == "4 patches are applied"


def test_make_train_fills_an_empty_upstream_and_leaves_another_checkout_alone(absent):
    make = ["make", "--no-print-directory", "-C", str(absent.root), "-f", str(ROOT / "Makefile"), "applied"]
    call = [*make, f"PYTHON={sys.executable}", f"UPSTREAM_URL={absent.root / 'away'}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "4 patches are applied" in done.stdout, done.stderr
    git(absent.upstream, "checkout", "--quiet", absent.series.base)
    done = subprocess.run(call, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and "make apply-patches" in done.stderr
    assert absent.head == absent.series.base


def test_get_takes_a_mirror_that_lacks_a_picture_but_no_code(project):
    base, mirror = project.series.base, str(project.upstream)
    assert get(project.root / "a", mirror, base) == f"{project.root}/a/ is at {base[:12]}"
    assert (project.root / "a" / PATH).read_text() == SOURCE
    for path in ("picture.png", PATH):
        blob = git(project.upstream, "rev-parse", f"{base}:{path}")
        (project.upstream / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
        if path == "picture.png":
            (project.root / "b").mkdir()
            assert "the mirror lacks picture.png" in get(project.root / "b" / "upstream", mirror, base)
            (project.root / "b" / "patches").symlink_to(project.patches)
            assert Project(project.root / "b", PATH).run("apply") == "4 patches are applied"
    with pytest.raises(UserError, match="walker.py cannot be read"):
        get(project.root / "c", mirror, base)
    with pytest.raises(UserError, match="cannot be cloned.* make upstream UPSTREAM_URL="):
        get(project.root / "d", str(project.root / "nothing"), base)
