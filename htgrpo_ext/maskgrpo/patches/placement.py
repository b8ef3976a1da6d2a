"""Where a patch's lines stand in a Python file: in which function, and in which order with the variables they use."""

import ast
from fnmatch import fnmatchcase

from htgrpo_ext.maskgrpo.patches.patch import Patch

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def functions_of(node: ast.AST, prefix: str = "") -> list[tuple[str, ast.AST, range]]:
    """(qualified name, node, lines with decorators) of every function; inner ones come after those around them."""
    found = []
    for child in ast.iter_child_nodes(node):
        inner = f"{prefix}{child.name}." if isinstance(child, Scope) else prefix
        if isinstance(child, Scope) and not isinstance(child, ast.ClassDef):
            first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
            found.append((inner[:-1], child, range(first, (child.end_lineno or first) + 1)))
        found += functions_of(child, inner)
    return found


def function_at(tree: ast.AST, line: int) -> str:
    """The innermost function around a line, `module` outside of all."""
    return ["module", *(name for name, _, lines in functions_of(tree) if line in lines)][-1]


def misplaced(patch: Patch, source: str) -> str | None:
    """What is wrong with where a patch's lines stand in the new file, in words; None if all is well."""
    try:
        tree = ast.parse(source.encode(errors="surrogateescape"))
        hooks = [(number, node) for number, text in patch.lines for node in ast.parse(text.strip()).body]
    except (SyntaxError, ValueError, RecursionError) as error:
        return f"the file is no valid Python any more, or an inserted line no statement ({error})"
    functions, wanted = functions_of(tree), patch.trailer("Hook-In")
    names = [name for name, *_ in functions]
    for name in wanted:
        if name != "module" and names.count(name) != 1:
            return f"there {'is more than one' if name in names else 'is no'} {name} in {patch.path}"
    stand = [function_at(tree, number) for number, _ in patch.lines]
    if wrong := [name for name in stand if name not in wanted]:
        return f"a line came to stand in {wrong[0]}, not in {' or '.join(wanted)}"
    if missing := [name for name in wanted if name not in stand]:
        return f"no line came to stand in {missing[0]}"
    statements = {(node.lineno, ast.dump(node)): node for node in ast.walk(tree) if isinstance(node, ast.stmt)}
    if any((number, ast.dump(node)) not in statements for number, node in hooks):
        return "a line came to stand inside a string or another statement"
    for name, function, _ in functions:
        ours = [statements[number, ast.dump(node)] for number, node in hooks if function_at(tree, number) == name]
        if ours and (fault := misordered(function, ours, patch)):
            return f"in {name}, {fault}"
    return None


def misordered(function: ast.AST, hooks: list[ast.stmt], patch: Patch) -> str | None:
    """What is wrong with the order of hooks and upstream's statements in a function, in words.

    A hook reads the last value of a variable: nothing assigns it below. What a hook sets is what upstream uses: below,
    and not above, but for computing it. If the hook does not read it, it is not assigned above either.
    Hook-After: what also stands above, and is not assigned below. Hook-Before: what stands below only.
    """
    ours, computing = {node for hook in hooks for node in ast.walk(hook)}, set()
    for node in ast.walk(function):
        head = node.test if isinstance(node, ast.If) else node if isinstance(node, ast.Assign | ast.AugAssign) else None
        made = {
            n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store) and n not in ours
        }
        computing |= {n for n in ast.walk(head) if isinstance(n, ast.Name) and n.id in made} if head else set()
    places: list[tuple[str, str, int]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            places.append((node.arg, "assigned", node.lineno))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            places.append((node.id, "computed" if node in computing | ours else "used", node.lineno))
        elif isinstance(node, ast.Name) and node not in ours:
            places.append((node.id, "assigned", node.lineno))
        elif isinstance(node, ast.Attribute) and node not in ours:
            places.append((node.attr, "attribute", node.lineno))

    def stands(pattern: str, above: bool, line: int, *kinds: str) -> bool:
        """Whether a name stands above (or below) a line, in one of these ways or in any."""
        named = [place for place in places if fnmatchcase(place[0], pattern) and (not kinds or place[1] in kinds)]
        return any(place[2] < line if above else place[2] > line for place in named)

    for hook in hooks:
        variables = [node for node in ast.walk(hook) if isinstance(node, ast.Name)]
        sets = {node.id for node in variables if isinstance(node.ctx, ast.Store)}
        reads = {node.id for node in variables if isinstance(node.ctx, ast.Load) or isinstance(hook, ast.AugAssign)}
        for name in reads:
            if stands(name, False, hook.lineno, "assigned"):
                return f"{name} is assigned below the hook that reads it"
        for name in sets:
            if stands(name, True, hook.lineno, "used", *(() if name in reads else ("assigned",))):
                return f"{name} is used or assigned above the hook that sets it"
            if not stands(name, False, hook.lineno, "used", "computed"):
                return f"{name} is not used below the hook that sets it"
    first, last = hooks[0].lineno, hooks[-1].lineno
    for pattern in patch.trailer("Hook-After"):
        if not stands(pattern, True, first) or stands(pattern, False, last, "assigned"):
            return f"the hook does not stand below {pattern} (Hook-After)"
    for pattern in patch.trailer("Hook-Before"):
        if stands(pattern, True, first) or not stands(pattern, False, last):
            return f"the hook does not stand above {pattern} (Hook-Before)"
    return None
