"""Upstream moves: the series merges right or stops and says where, on a small upstream made here and on MaskGRPO."""

import pytest

from helpers.upstream_moves import (
    Project,
    assert_moved,
    assert_stops,
    commit,
    function_text,
    git,
    made_here,
    renamed,
)


def functions(project: Project) -> dict[str, str]:
    """The first patch with a hook in each function, by the function's qualified name."""
    found: dict[str, str] = {}
    for patch, function, *_ in project.hooks():
        found.setdefault(function, patch)
    return found


def test_unrelated_lines_above_every_hook_are_merged(project):
    rows = project.source().split("\n")
    hooks = [line for _, _, line, _ in project.hooks()]
    assert len(hooks) == 4
    for line in sorted(hooks, reverse=True):
        above = line - 4
        while not rows[above].strip():
            above -= 1
        rows.insert(above, "# moved on")
    target = project.move("\n".join(["# moved on"] * 7 + rows))
    assert "moved 4 patches" in project.run("rebase", target)
    assert_moved(project, target)
    project.run("unapply")
    assert project.head == target


def test_renamed_function_stops_the_move_until_the_patches_name_it(project):
    targets = [
        (function, patch, project.move(renamed(project.source(), function.rpartition(".")[2], "other")))
        for function, patch in functions(project).items()
    ]
    for function, patch, target in targets:
        assert_stops(project, target, patch, f"there is no {function}")
    function, _, target = targets[-1]
    project.name_in_patches(function, f"{function.rpartition('.')[0]}.other")
    assert "moved 4 patches" in project.run("rebase", target, resume=True)
    assert_moved(project, target)


@pytest.mark.parametrize("side", [-1, 0])
@pytest.mark.parametrize("which", range(4))
def test_rewritten_neighbour_stops_the_move_until_the_lines_are_put_there_by_hand(project, which, side):
    patch, function, line, added = project.hooks()[which]
    rows = project.source().split("\n")
    rows[line + side] += "  # rewritten"
    target = project.move("\n".join(rows))
    assert_stops(project, target, patch, function, "conflict")

    rows = project.file.read_text().split("\n")  # with the patches before it
    line = next(number for number, row in enumerate(rows) if row.endswith("  # rewritten")) - side
    rows[line:line] = added
    for number, text in next(p for p in project.series.patches if p.name == patch).lines:
        if not text.startswith(" "):
            rows.insert(number - 1, text)
    project.file.write_text("\n".join(rows))
    assert "moved 4 patches" in project.run("rebase", target, resume=True)
    assert_moved(project, target)
    if (project.root / "tests").is_dir():
        assert "exact" in project.run("check")


def test_edits_by_hand_are_checked_and_stops_follow_each_other(tmp_path):
    project = made_here(tmp_path)
    text = project.source().replace("loss_5 = self.step(5)", "loss_5 = self.step(50)")
    target = project.move(text.replace("loss_12 = self.step(12)", "loss_12 = self.step(120)"))
    project.refuses("rebase", "start it without CONTINUE=1", target, resume=True)
    assert_stops(project, target, project.names[1], "Walker.loss", "conflict")
    file, before = project.file, project.contents()

    def put(line: str, above: str) -> None:
        file.write_text(file.read_text().replace(above, line + above))

    put("        loss_5 *= 2\n", "        roll_6 =")
    words = "a line came to stand in Walker.roll, not in Walker.loss"
    project.refuses("rebase", words, target, resume=True)
    file.write_text(file.read_text().replace("        loss_5 *= 2\n", ""))
    put("        loss_5 *= 2\n        loss_4 *= 2\n", "        loss_6 =")
    project.refuses("rebase", "other lines than the patch's", target, resume=True)
    file.write_text(file.read_text().replace("        loss_4 *= 2\n", ""))
    project.refuses("rebase", project.names[2], target, resume=True)
    assert project.contents() == before and not project.changed
    put("        loss_12 *= 3\n        loss_11 *= 4\n", "        loss_13 =")
    assert "moved 4 patches" in project.run("rebase", target, resume=True)
    assert_moved(project, target)


@pytest.mark.parametrize("same", [True, False])
def test_duplicate_below_an_edited_original_stops_the_move(project, same):
    source = project.source()
    for function, patch in functions(project).items():
        name = function.rpartition(".")[2]
        original = function_text(source, name)
        edited = f"    def {name}(self, *arguments, **keywords):\n        return self.copy(*arguments, **keywords)\n"
        copy = original if same else original.replace(f"def {name}(", "def copy(", 1)
        target = project.move(source.replace(original, f"{edited}\n{copy}"))
        assert_stops(project, target, patch, function)


def test_renamed_file_stops_the_move_until_the_lines_are_put_there_by_hand(project):
    source, other = project.source(), "elsewhere.py"
    target = commit(project.upstream, project.series.base, {project.path: None, other: source})
    assert_stops(project, target, project.names[0], f"{project.path}: does not exist")
    file = project.upstream / other
    for patch in project.series.patches:
        rows = file.read_text().split("\n")
        for number, text in patch.lines:
            rows.insert(number - 1, text)
        file.write_text("\n".join(rows))
        if patch is not project.series.patches[-1] and patch.name != project.names[-1]:
            project.refuses("rebase", "does not exist", target, resume=True)
    assert "moved 4 patches" in project.run("rebase", target, resume=True)
    moved = Project(project.root, other)
    assert_moved(moved, target)
    assert git(project.upstream, "diff", "--name-only", target, "HEAD") == other


def test_target_that_is_not_there_is_refused(tmp_path):
    project = made_here(tmp_path)
    project.refuses("rebase", "has no commit `nowhere`", "nowhere")
    project.refuses("rebase", "needs TO=COMMIT")
