"""Where a patch's lines stand in a Python file: in which function, and in which order with the variables they use."""

import ast
from fnmatch import fnmatchcase

from htgrpo_ext.maskgrpo.patches.patch import Patch

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def functions_of(node: ast.AST, prefix: str = "") -> list[tuple[str, ast.AST, range]]:
    """(qualified name, node, lines with decorators) of every function; inner ones come after those around them."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue
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
    stand = {number: function_at(tree, number) for number, _ in patch.lines}
    for name in wanted:
        if name != "module" and names.count(name) != 1:
            return f"there {'is more than one' if name in names else 'is no'} {name} in {patch.path}"
    if wrong := [name for name in stand.values() if name not in wanted]:
        return f"a line came to stand in {wrong[0]}, not in {' or '.join(wanted)}"
    if missing := [name for name in wanted if name not in stand.values()]:
        return f"no line came to stand in {missing[0]}"
    beside = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno in stand]
    statements = {(node.lineno, ast.dump(node)): node for node in beside}
    if any((number, ast.dump(node)) not in statements for number, node in hooks):
        return "a line came to stand inside a string or another statement"
    for name, function, _ in functions:
        ours = [statements[number, ast.dump(node)] for number, node in hooks if stand[number] == name]
        if ours and (fault := misordered(function, ours, patch)):
            return f"in {name}, {fault}"
    return None


def variables(node: ast.AST, context: type[ast.expr_context]) -> list[ast.Name]:
    """The variables that a node assigns (Store) or reads (Load)."""
    return [name for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, context)]


def misordered(function: ast.AST, hooks: list[ast.stmt], patch: Patch) -> str | None:
    """What is wrong with the order of hooks and upstream's statements in a function, in words.

    A hook reads the last value of a variable: nothing assigns it below. What a hook sets is what upstream uses: below,
    and not above, but for computing it. If the hook does not read it, it is not assigned above either.
    Hook-After: what also stands above, and is not assigned below. Hook-Before: what stands below only.
    """
    ours = {node for hook in hooks for node in ast.walk(hook)}
    computing = set(ours)
    for node in ast.walk(function):
        if isinstance(node, ast.If | ast.Assign | ast.AugAssign):
            made = {name.id for name in variables(node, ast.Store) if name not in ours}
            head = node.test if isinstance(node, ast.If) else node
            computing |= {name for name in variables(head, ast.Load) if name.id in made}
    reading = variables(function, ast.Load)
    places = [(name.id, "computed" if name in computing else "used", name.lineno) for name in reading]
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            places.append((node.arg, "assigned", node.lineno))
        elif isinstance(node, ast.Attribute) and node not in ours:
            places.append((node.attr, "attribute", node.lineno))
    places += [(name.id, "assigned", name.lineno) for name in variables(function, ast.Store) if name not in ours]

    def stands(pattern: str, side: str, line: int, *kinds: str) -> bool:
        """Whether a name stands above or below a line, in one of these ways or in any."""
        named = [at for name, kind, at in places if fnmatchcase(name, pattern) and (not kinds or kind in kinds)]
        return any(at < line if side == "above" else at > line for at in named)

    for hook in hooks:
        sets = {name.id for name in variables(hook, ast.Store)}
        reads = {name.id for name in variables(hook, ast.Load)} | (sets if isinstance(hook, ast.AugAssign) else set())
        for name in reads:
            if stands(name, "below", hook.lineno, "assigned"):
                return f"{name} is assigned below the hook that reads it"
        for name in sets:
            if stands(name, "above", hook.lineno, "used", *([] if name in reads else ["assigned"])):
                return f"{name} is used or assigned above the hook that sets it"
            if not stands(name, "below", hook.lineno, "used", "computed"):
                return f"{name} is not used below the hook that sets it"
    first, last = hooks[0].lineno, hooks[-1].lineno
    for name in patch.trailer("Hook-After"):
        if not stands(name, "above", first) or stands(name, "below", last, "assigned"):
            return f"the hook does not stand below {name} (Hook-After)"
    for name in patch.trailer("Hook-Before"):
        if stands(name, "above", first) or not stands(name, "below", last):
            return f"the hook does not stand above {name} (Hook-Before)"
    return None
