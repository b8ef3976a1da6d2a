"""A hook in the right function at the wrong place stops a move: on a small upstream made here and on MaskGRPO."""

import pytest

from helpers.upstream_moves import PATH, assert_moved, assert_stops, made_here
from htgrpo_ext.maskgrpo.patches.patch import Patch
from htgrpo_ext.maskgrpo.patches.placement import misplaced

# (which hook; the row before which upstream inserts, from the row below the hook; what it inserts; why that is wrong)
MADE_HERE = [
    (0, 1, "roll_8 = 0", "roll_8 is assigned below the hook that reads it"),
    (1, 1, "loss_5 = 0", "loss_5 is assigned below the hook that reads it"),
    (1, -2, "seen = loss_5", "loss_5 is used or assigned above the hook that sets it"),
    (1, -2, "seen = loss_6", "does not stand above loss_6 (Hook-Before)"),
    (3, 1, "loss_17 += 1", "does not stand below loss_17 (Hook-After)"),
]
MASKGRPO = [
    (0, 1, "num_vq_tokens = 256", "num_vq_tokens is assigned below the hook that reads it"),
    (1, -2, "perturb_mask = self.mask", "perturb_mask is used or assigned above the hook that sets it"),
    (2, 1, "this_itr_idx = 0", "this_itr_idx is assigned below the hook that reads it"),
    (2, -2, "seed = mask_seeds[this_itr_idx]", "this_itr_idx is used or assigned above the hook that sets it"),
    (2, -2, "first = self._get_per_token_logps(model)", "does not stand above _get_per_token_logps (Hook-Before)"),
    (3, 1, "per_token_loss2 = per_token_loss1", "per_token_loss2 is assigned below the hook that reads it"),
]


def test_order_of_a_hook_and_the_variables_it_uses_is_kept(project):
    for which, offset, statement, words in MADE_HERE if project.path == PATH else MASKGRPO:
        patch, function, line, added = project.hooks()[which]
        rows = project.source().split("\n")
        rows.insert(line + offset, added[0].partition(added[0].strip())[0] + statement)
        assert_stops(project, project.move("\n".join(rows)), patch, f"in {function}, ", words)


@pytest.mark.parametrize("fence", ["", '"""'], ids=["code", "string"])
def test_guarded_lines_repeated_earlier_in_the_function_stop_the_move(project, fence):
    """The merge takes the copy, because its lines are what they were: it is code, or a string that keeps old code."""
    words = "inside a string or another statement" if fence else "is assigned below the hook that reads it"
    for which in (0, 2, 3):
        patch, _, line, added = project.hooks()[which]
        rows, indent = project.source().split("\n"), added[0].partition(added[0].strip())[0]
        copied, fences = rows[line - 3 : line + 1], [indent + fence] if fence else []
        edited = [f"{row}  # edited" if row else row for row in copied]
        rows[line - 3 : line + 1] = [*fences, *copied, *fences, f"{indent}again = 1", *edited]
        assert_stops(project, project.move("\n".join(rows)), patch, words)


def test_stopped_hook_goes_on_after_it_was_put_in_order_by_hand(tmp_path):
    project = made_here(tmp_path)
    target = project.move(project.source().replace("        loss_7 =", "        loss_5 = 0\n        loss_7 ="))
    assert_stops(project, target, project.names[1], "loss_5 is assigned below")
    text = project.file.read_text().replace("        loss_7 =", "        loss_5 *= 2\n        loss_7 =")
    project.file.write_text(text)
    project.refuses("rebase", "does not stand above loss_6", target, resume=True)
    file = project.patches / project.names[1]
    file.write_text(file.read_text().replace("Hook-Before: loss_6", "Hook-Before: loss_7"))
    assert "moved 4 patches" in project.run("rebase", target, resume=True)
    assert_moved(project, target)


def order_fault(rows: list[str], hook: str, after: str = "", before: str = "") -> str | None:
    """What is wrong with `hook`, a row of a function f."""
    message = f"s\n\nHook-In: f\n{after and f'Hook-After: {after}'}\n{before and f'Hook-Before: {before}'}\n"
    source = "\n".join(["def f(x, *, y=0):", *(f"    {row}" for row in rows)])
    number = rows.index(hook) + 2
    return misplaced(Patch("a.patch", "", message, "a.py", "", f"@@ -1,0 +{number} @@\n+    {hook}\n"), source)


GOOD = [
    ["x = hook(x)", "return x"],
    ["n = 1", "n = hook(n)", "return n"],
    ["n = g()", "if n == -1:", "    n = 0", "n = hook(n)", "return n"],  # computes n, uses it for nothing else
    ["n = g()", "n = n + 1", "n = hook(n)", "return n"],
    ["m = hook(y)", "if x:", "    m = 2", "return m"],  # a default
    ["other = hook(x)", "return other", "x.n = 1"],
]
WRONG = [
    ["x = hook(x)", "x = 2", "return x"],
    ["x = hook(x)", "for x in y:", "    pass", "return x"],
    ["n = g()", "print(n)", "n = hook(n)", "return n"],
    ["n = g()", "if n == -1:", "    y = 0", "n = hook(n)", "return n"],
    ["n = g()", "n[0] = 1", "n = hook(n)", "return n"],
    ["n = g()", "n = hook(n)", "return 1"],  # without effect
    ["m = 2", "m = hook(y)", "return m"],  # undoes what was computed
]


@pytest.mark.parametrize("rows", GOOD + WRONG)
def test_variables_are_assigned_above_and_used_below_the_hook(rows):
    hook = next(row for row in rows if "hook(" in row)
    assert (order_fault(rows, hook) is None) == (rows in GOOD)


def test_trailers_name_what_stands_above_and_below_the_hook():
    rows = ["coef_1 = g(x)", "n = coef_1", "n = hook(n)", "return self.later(n)"]
    assert order_fault(rows, "n = hook(n)", "coef_?, x", "later") is None
    for after, before in (("later", ""), ("nothing", ""), ("", "coef_*"), ("", "nothing"), ("", "g")):
        name = after or before
        where = f"does not stand {'below' if after else 'above'} {name} (Hook-{'After' if after else 'Before'})"
        assert where in str(order_fault(rows, "n = hook(n)", after, before))
