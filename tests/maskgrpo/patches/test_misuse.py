"""The patch tool never works on another repository, loses no commit of the user's, and refuses in one line."""

import os
import shutil
import subprocess
import sys

import pytest

from helpers.upstream_moves import NAMES, PATH, ROOT, SOURCE, Project, git, made_here, with_hooks

ACTIONS = ("get", "apply", "unapply", "export", "rebase", "applied")


@pytest.fixture
def project(tmp_path) -> Project:
    return made_here(tmp_path)


def command(project: Project, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and error output of the tool, run as a user does."""
    call = [sys.executable, "-m", "htgrpo_ext.maskgrpo.patches", *arguments, "--root", str(project.root)]
    env = os.environ | {"PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(call, capture_output=True, text=True, env=env)
    return done.returncode, done.stderr


def assert_refused(project: Project, words: str, *arguments: str, **environment: str) -> None:
    code, said = command(project, *arguments, **environment)
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1 and words in said, said


def in_a_repository(project: Project) -> None:
    """The project's folder as a repository that has MaskGRPO's commits too; upstream/ is empty."""
    git(project.root, "init", "--quiet")
    (project.root / ".gitmodules").write_text('[submodule "upstream"]\n\tpath = upstream\n\turl = ./away\n')
    (project.root / "mine.txt").write_text("mine")
    git(project.root, "add", "mine.txt", "patches", "tests")
    git(project.root, "commit", "--quiet", "-m", "mine")
    git(project.root, "fetch", "--quiet", str(project.upstream), "HEAD")
    project.upstream.rename(project.root / "away")
    project.upstream.mkdir()


def state(project: Project) -> str:
    branch = git(project.root, "symbolic-ref", "HEAD"), git(project.root, "rev-parse", "HEAD")
    return f"{branch} {git(project.root, 'status', '--porcelain')} {(project.root / 'mine.txt').read_text()}"


@pytest.mark.parametrize("what", ["empty", "gitdir: ../.git\n", "link"])
def test_git_never_runs_in_the_projects_own_repository(project, what):
    in_a_repository(project)
    dot_git, to = project.upstream / ".git", project.series.base
    if what == "empty":
        dot_git.mkdir()
    elif what == "link":
        dot_git.symlink_to("../.git")
    else:
        dot_git.write_text(what)
    before = state(project)
    for action in ACTIONS:
        assert_refused(
            project, "not a git repository of its own", action, "--to", to, "--url", str(project.root / "away")
        )
        assert state(project) == before and list(project.upstream.iterdir()) == [dot_git]


def test_submodule_with_its_git_directory_elsewhere_is_a_repository_of_its_own(project):
    away = project.root / "modules"
    (project.upstream / ".git").rename(away)
    (project.upstream / ".git").write_text("gitdir: ../modules\n")
    git(project.root, "init", "--quiet")
    assert "already" in project.run("apply")
    project.run("unapply")
    assert project.file.read_text() == SOURCE


def test_variables_and_settings_of_the_callers_git_are_without_effect(project, monkeypatch):
    other, before, text = project.root / "other", project.contents(), project.file.read_text()
    shutil.copytree(project.upstream, other)
    head, base = project.head, project.series.base
    for key in ("GIT_DIR", "GIT_COMMON_DIR"):
        monkeypatch.setenv(key, str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=3")
    (project.root / "config").write_text(
        "[diff]\nnoprefix = true\nmnemonicPrefix = true\n[color]\nui = always\n[apply]\nwhitespace = error-all\n"
        "[core]\nautocrlf = true\n[commit]\ngpgSign = true\n[status]\nshort = true\nbranch = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(project.root / "config"))
    project.run("unapply")
    project.run("apply")
    project.run("export")
    assert (project.head, git(other, "rev-parse", "HEAD")) == (head, head) and git(other, "status", "--porcelain") == ""
    assert project.contents() == before and project.file.read_bytes() == text.replace("\n", "\r\n").encode()
    target = project.move(SOURCE.replace("roll_1 =", "roll_one ="))
    assert "moved 4 patches" in project.run("rebase", target)
    assert git(other, "rev-parse", "HEAD") == head != base


def commit_of_the_users(project: Project, line: str = "        loss_14 *= 6\n") -> str:
    """A commit on HEAD as a user makes it."""
    project.file.write_text(project.file.read_text().replace("        loss_15 =", f"{line}        loss_15 ="))
    message = "loss: change fourteen\n\nHook-In: Walker.loss"
    who = {f"GIT_{role}_{key}": "me@here" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    git(project.upstream, "commit", "--quiet", "--all", "-m", message, **who)
    return project.head


@pytest.mark.parametrize("start", ["apply", "unapply"])
def test_commits_of_the_users_that_are_saved_nowhere_stay(project, start):
    project.run(start)
    before, mine = project.contents(), commit_of_the_users(project)
    target = project.move(SOURCE.replace("roll_1 =", "roll_one ="))
    for action in ("get", "rebase", "apply", "unapply"):
        words = "neither the base nor the series" if "apply" in action else f"on no branch, {mine[:7]} `loss: change f"
        project.refuses(action, words, target)
        assert project.head == mine and project.contents() == before and not project.changed
    git(project.upstream, "branch", "mine")
    assert "moved 4 patches" in project.run("rebase", target)


def test_exported_commits_of_the_users_are_the_series(project):
    commit_of_the_users(project)
    assert project.run("export") == "wrote 5 patches" and project.names[4] == "0005-loss-change-fourteen.patch"
    text = project.file.read_text()
    assert project.run("applied") == project.run("apply").removesuffix(" already") == "5 patches are applied"
    project.run("unapply")
    project.run("apply")
    assert project.file.read_text() == text
    target = project.move(SOURCE.replace("roll_1 =", "roll_one ="))
    assert "moved 5 patches" in project.run("rebase", target)


def put_by_hand(project: Project, target: str, end: str) -> None:
    """Move the series, each patch's lines put there by hand; `end` ends them."""
    for which in range(4):
        project.refuses("rebase", "conflict", target, resume=which > 0)
        project.file.write_bytes(with_hooks(project.file.read_bytes().decode(), which, end).encode())
    assert "moved 4 patches" in project.run("rebase", target, resume=True)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_upstream_with_crlf_is_reached_by_hand_and_then_moves_on(project, end):
    put_by_hand(project, project.move(SOURCE.replace("\n", "\r\n")), end)
    text = project.file.read_bytes()
    assert text.replace(b"\r\n", b"\n").count(b"\r") == 0 and text.count(b"\r\n") > SOURCE.count("\n") - 1
    project.run("unapply")
    assert project.file.read_bytes() == SOURCE.replace("\n", "\r\n").encode()
    project.run("apply")
    assert project.file.read_bytes() == text and "exact" in project.run("check")
    again = project.move(SOURCE.replace("roll_1 =", "one =").replace("\n", "\r\n"))
    assert "moved 4 patches" in project.run("rebase", again)


def test_edit_by_hand_in_a_checkout_that_git_gives_crlf_goes_on(project, monkeypatch):
    git(project.upstream, "config", "core.autocrlf", "true")
    target = project.move(SOURCE.replace("loss_5 = self.step(5)", "loss_5 = self.step(50)"))
    project.refuses("rebase", "conflict", target)
    text = project.file.read_bytes().replace(b"        loss_6 =", b"        loss_5 *= 2\r\n        loss_6 =")
    assert text.count(b"\r\n") == text.count(b"\n")
    project.file.write_bytes(text)
    assert "moved 4 patches" in project.run("rebase", target, resume=True)


LATIN = SOURCE.replace('"""A walker."""', '"""Läufer."""').encode("latin-1")


def test_latin_1_file_is_patched_byte_for_byte(project):
    project.run("unapply")
    project.file.write_bytes(b"# -*- coding: latin-1 -*-\n" + LATIN)
    git(project.upstream, "commit", "--quiet", "--all", "-m", "Latin-1")
    target = project.head
    project.run("rebase", target)
    patched = project.file.read_bytes()
    assert patched.decode("latin-1").splitlines()[1] == '"""Läufer."""' and b"loss_12 *= 3" in patched
    project.run("unapply")
    assert project.file.read_bytes() == b"# -*- coding: latin-1 -*-\n" + LATIN
    project.run("apply")
    assert project.file.read_bytes() == patched
    git(project.upstream, "checkout", "--quiet", target)
    project.file.write_bytes(LATIN)
    git(project.upstream, "commit", "--quiet", "--all", "-m", "no coding line, so no Python")
    assert_refused(project, "no valid Python any more", "rebase", "--to", project.head)


def remove(path: str):
    return lambda project: (project.root / path).unlink()


def write(path: str, content: bytes):
    return lambda project: (project.root / path).write_bytes(content)


def cut(path: str, share: float = 0.5):
    def half(project: Project) -> None:
        content = (project.root / path).read_bytes()
        (project.root / path).write_bytes(content[: int(len(content) * share)])

    return half


SECOND = f"patches/{NAMES[1]}"
HALF_WRITTEN = [
    (remove("patches/series"), "patches/series: No such file"),
    (write("patches/series", b""), "patches/series: the line `# base: COMMIT`"),
    (write("patches/series", b"\xff\xfe\x00"), "patches/series: the line `# base: COMMIT`"),
    (cut("patches/series", 0.9), "there is no such file"),
    (write(SECOND, b"\xff\xfe\x00"), f"{NAMES[1]}: not one patch of one file"),
    (cut(SECOND, 0.3), f"{NAMES[1]}: not one patch of one file"),
    (cut(SECOND, 0.98), NAMES[1]),
    (write("upstream/.git/HEAD", b""), "not a git repository of its own"),
    (cut("upstream/.git/HEAD"), "upstream/"),
    (cut("upstream/.git/index", 0.05), "index file"),
    (write("upstream/.git/index.lock", b""), "upstream/.git/index.lock': File exists"),
    (remove(f"upstream/{PATH}"), f"{PATH} has changes of its own"),
    (lambda project: shutil.rmtree(project.upstream / ".git" / "objects"), "upstream/"),
    (lambda project: shutil.rmtree(project.upstream / ".git" / "refs"), "not a git repository of its own"),
]


@pytest.mark.parametrize(("spoil", "words"), HALF_WRITTEN, ids=[str(i) for i in range(len(HALF_WRITTEN))])
def test_half_written_state_is_one_line(project, spoil, words):
    project.run("unapply")
    spoil(project)
    assert_refused(project, words, "apply")


def test_every_cut_of_a_patch_is_refused_by_name(project):
    text = project.series.patches[1].text
    for end in range(0, len(text), 7):
        (project.root / SECOND).write_text(text[:end])
        project.refuses("apply", NAMES[1])


def test_missing_git_or_address_is_one_line(project):
    assert_refused(project, "git", "apply", PATH="/nonexistent")
    project.upstream.rename(project.root / "away")
    assert_refused(project, "git config", "get")
    assert_refused(project, "cannot be cloned", "get", "--url", "nowhere")
