"""The tables and the figure of a comparison of tuned methods, made of its data: tables.md and scores.png."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.console import Console

from htgrpo_ext.files import write_atomically
from htgrpo_ext.report.comparison import COLORS
from htgrpo_ext.report.curves import STYLE
from htgrpo_ext.report.tables import Grid, half_width, markdown, short, terminal
from htgrpo_ext.report.tuned_data import read_data, short_rate, write_data
from htgrpo_ext.report.tuned_scores import Scores

TABLES, FIGURE = "tables.md", "scores.png"
NOTE = (
    "Scores are means over seeds; brackets are 95 % intervals, by bootstrap over prompts within each task, the seeds' "
    "spread added as Student's t. Gains are paired with the base model, differences with the row named, prompt by "
    "prompt and seed by seed: the same prompts, the same noise. A difference is beyond the noise if its interval "
    "excludes 0; of 20 such intervals about one excludes 0 by chance."
)
SECONDS = (
    "Seconds are those of scoring and updates: the median of a cycle, measured one run at a time, times the cycles."
)


def write_tuned(data: dict, out: Path, console: Console | None = None) -> None:
    """Write the data, then what `remake` makes of it."""
    write_data(data, out)
    remake(out, console)


def remake(folder: Path, console: Console | None = None) -> None:
    """Write tables.md and scores.png of the data in a folder, and print the tables. Raises UserError."""
    scores = Scores(read_data(folder))
    grids = tables(scores)
    drawn = bool(scores.data["parts"]["equal_rollouts"])
    timed = [SECONDS] if scores.data["plan"]["timing"] else []
    words = [rule(scores.data), NOTE, *timed, *cautions(scores.data)]
    parts = [f"## {grid.title}\n\n{markdown(grid)}" for grid in grids] + ([f"![]({FIGURE})"] if drawn else [])
    title = f"# Tuned methods, {scores.benchmark.title}"
    write_atomically(folder / TABLES, "\n\n".join([title, *words, *parts]) + "\n")
    if drawn:
        _draw(scores, folder / FIGURE)
    if console:
        for grid in grids:
            for table in terminal(grid, console.width):
                console.print(table)
        for line in (*words, str(folder / TABLES)):
            console.print(line, highlight=False, soft_wrap=True, markup=False)


# --- words -----------------------------------------------------------------------------------------------------


def rule(data: dict) -> str:
    """How the choice was made."""
    plan = data["plan"]
    seeds = f"The comparison has seeds {', '.join(map(str, plan['seeds']))}."
    if (tuning := plan["tuning"]) is None:
        return f"Learning rates and settings were tuned elsewhere; nothing was tried here. {seeds}"
    rates = tuning["learning_rates"]
    values = len(next(iter(plan["methods"].values()))["values"])
    return (
        f"Each method had {len(rates) + values} tuning runs of {plan['cycles']} cycles: the learning rates "
        f"{', '.join(map(short_rate, rates))} at its default settings, then {values} other "
        f"value{'s' if values > 1 else ''} of one setting at its best rate. They have training seed {tuning['seed']} "
        f"and evaluation noise {tuning['eval_seed']}, which no run of the comparison has. Scores within "
        f"{tuning['tie']:g} of the best tie with it; then the smallest rate, or the default value, is taken. {seeds}"
    )


def cautions(data: dict) -> list[str]:
    """What a reader must know besides."""
    tuning, found = data["plan"]["tuning"], []
    rates = tuning["learning_rates"] if tuning else []
    for end, words in ((min(rates), "smallest"), (max(rates), "largest")) if tuning else ():
        if methods := [method for method, choice in data["choices"].items() if choice["rate"] == end]:
            found.append(f"Chosen at an end of the grid, the {words} rate {short_rate(end)}: {', '.join(methods)}.")
    if unlike := data["base_differs"]:
        found.append(f"The base model was judged otherwise than in the first run in {', '.join(unlike)}.")
    for name, run in data["runs"].items():
        found += [f"{name}: {warning}." for warning in run["warnings"]]
    return found


# --- tables ----------------------------------------------------------------------------------------------------


def tables(scores: Scores) -> list[Grid]:
    """All tables whose runs are there."""
    parts, made = scores.data["parts"], [_grid(scores)] if scores.data["plan"]["tuning"] else []
    if parts["equal_rollouts"]:
        made += [_equal_rollouts(scores), _by_task(scores, "equal_rollouts", "Equal rollouts, by task")]
    if parts["equal_seconds"]:
        made += [_equal_seconds(scores), _by_task(scores, "equal_seconds", "Equal seconds, by task")]
    if rows := scores.beside("variants"):
        made.append(_beside(scores, rows, "Variants at the tuned settings"))
    if rows := scores.beside("published"):
        made.append(_beside(scores, rows, "Published settings beside the tuned ones, at the tuned learning rate"))
    if parts["check"]:
        made.append(_check(scores))
    return made


def _grid(scores: Scores) -> Grid:
    """Scores of the tuning runs, and what was chosen."""
    data, parts = scores.data, scores.data["parts"]
    rates = list(next(iter(parts["grid"].values())))
    rows = [["method", *rates, "its own setting, at the best rate", "chosen"]]
    for method, names in parts["grid"].items():
        cells, values, chosen = [f"{scores.overall(name):.3f}" for name in names.values()], "–", "–"
        if method in parts["values"]:
            setting = data["plan"]["methods"][method]["setting"]
            of_values = (f"{value}: {scores.overall(name):.3f}" for value, name in parts["values"][method].items())
            values = f"{setting.rpartition('.')[2]} {', '.join(of_values)}"
            chosen = f"{short_rate(data['choices'][method]['rate'])}, {_own(data, method)}"
        rows.append([method, *cells, values, chosen])
    return Grid(f"Tuning, one run each: {scores.benchmark.title} overall", rows)


def _own(data: dict, method: str) -> str:
    """The method's own setting as it was chosen."""
    choice, setting = data["choices"][method], data["plan"]["methods"][method]["setting"]
    default = " (default)" if choice["value"] == choice["default"] else ""
    return f"{setting.rpartition('.')[2]} {choice['value']:g}{default}"


def _equal_rollouts(scores: Scores) -> Grid:
    data, reference = scores.data, scores.data["plan"]["reference"]
    heads = ["overall", "of each seed", "gain", f"less {reference}", "beyond the noise"]
    rows = [
        ["method", "learning rate", "its own setting", *heads, "rows scored a cycle", "seconds"],
        _base_row(scores, 2, 2),
    ]
    for method, row in (found := scores.part("equal_rollouts")).items():
        names = data["parts"]["equal_rollouts"][method]
        scored = sum(data["runs"][name]["scored_rows_per_cycle"] for name in names) / len(names)
        tuned = [short_rate(data["choices"][method]["rate"]), _own(data, method)]
        rows.append([method, *tuned, *_cells(row), f"{scored:,.0f}", _seconds(row["seconds"])])
    first = next(iter(found.values()))
    return Grid(f"Equal rollouts: {first['cycles']} cycles, {first['rollouts']:,} rollouts a run", rows)


def _equal_seconds(scores: Scores) -> Grid:
    plan, reference = scores.data["plan"], scores.data["plan"]["reference"]
    heads = ["overall", "of each seed", "gain", f"less {reference}", "beyond the noise"]
    rows = [["method", "seconds a cycle", "cycles", "rollouts", "seconds", *heads], _base_row(scores, 4, 0)]
    for method, row in scores.part("equal_seconds").items():
        cost = [f"{scores.cycle_seconds(method):.2f}", f"{row['cycles']:,}", f"{row['rollouts']:,}"]
        rows.append([method, *cost, _seconds(row["seconds"]), *_cells(row)])
    budget = plan["cycles"] * scores.cycle_seconds(plan["budget_of"])
    title = f"Equal seconds: whole cycles within {budget:,.0f} s, the {plan['cycles']} cycles of {plan['budget_of']}"
    return Grid(title, rows)


def _base_row(scores: Scores, before: int, after: int) -> list[str]:
    return ["base", *["–"] * before, _score(scores.base_row()), *["–"] * (4 + after)]


def _cells(row: dict) -> list[str]:
    """Overall, of each seed, gain, difference, beyond the noise."""
    each = " ".join(f"{score:.3f}" for score in row["of_seeds"])
    cells = [_score(row["overall"]), each, _score(row["gain"], "+")]
    if "difference" not in row:
        return [*cells, "–", "–"]
    beyond = row["difference"]["low"] > 0 or row["difference"]["high"] < 0
    return [*cells, _score(row["difference"], "+"), "yes" if beyond else "no"]


def _score(estimate: dict, sign: str = "") -> str:
    return f"{estimate['score']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:,.1f}"


def _by_task(scores: Scores, part: str, title: str) -> Grid:
    rows = scores.part(part)
    tasks = list(next(iter(rows.values()))["tasks"])
    table = [["method", *map(scores.benchmark.task_words, tasks)]]
    for method, row in rows.items():
        table.append(
            [method, *(f"{short(t['score'])} {half_width(t['low'], t['high'])}" for t in row["tasks"].values())]
        )
    return Grid(title, table)


def _beside(scores: Scores, rows: list[tuple[str, dict]], title: str) -> Grid:
    heads = ["overall", "of each seed", "gain", "less the tuned row above", "beyond the noise"]
    methods, table = scores.data["plan"]["methods"], [["method", "settings", *heads]]
    for name, row in rows:
        method, _, tag = name.partition(", ")
        of = methods[method]
        given = (of["variants"] | {"published": of["published"]})[tag] if tag else {}
        changed = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in given.items())
        table.append([name, changed or _own(scores.data, method), *_cells(row)])
    return Grid(title, table)


def _check(scores: Scores) -> Grid:
    check, rows = scores.data["plan"]["check"], [["method", "learning rate", "here", "reported before", "apart"]]
    for method, names in scores.data["parts"]["check"].items():
        for (rate, name), before in zip(names.items(), check["reported"][method], strict=True):
            here = scores.summarise(scores.shares([name]))["overall"]
            rows.append([method, rate, _score(here), f"{before:.3f}", f"{here['score'] - before:+.3f}"])
    return Grid(f"Default settings at seed {check['seed']}, beside an earlier grid", rows)


# --- figure ----------------------------------------------------------------------------------------------------


def _draw(scores: Scores, path: Path) -> None:
    """Score against seconds, if they were measured, and against rollouts; a line joins a method's two budgets."""
    parts = {part: scores.part(part) for part in ("equal_rollouts", "equal_seconds")}
    words = {
        "seconds": "seconds in scoring and updates, a run",
        "rollouts": "rollouts, a run; equal ones are drawn side by side",
    }
    keys = [key for key in words if any(row[key] for row in parts["equal_rollouts"].values())]
    with matplotlib.rc_context({**STYLE, "font.size": 10}):
        figure = Figure(figsize=(2 + 4.5 * len(keys), 4.6), layout="constrained", dpi=110)
        axes = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
        for one, key in zip(axes, keys, strict=True):
            one.set_xscale("log")
            _draw_against(one, parts, key)
            one.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            one.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.4g}"))
            one.xaxis.set_minor_formatter(NullFormatter())
            budgets = {row[key] for part in parts.values() for row in part.values()}
            if len(budgets) == 1:
                one.set_xticks(list(budgets))
            one.axhline(scores.base_row()["score"], color="#9aa3ad", linestyle=":", linewidth=1.5)
            one.set(xlabel=words[key])
        axes[0].set(ylabel=f"{scores.benchmark.title} overall")
        square = "square: equal seconds; " if parts["equal_seconds"] else ""
        axes[0].set_title(f"round: equal rollouts; {square}dotted: base", fontsize=9.5)
        axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(path)


def _draw_against(axes: Axes, parts: dict[str, dict[str, dict]], key: str) -> None:
    methods = list(parts["equal_rollouts"])
    for number, method in enumerate(methods):
        rows = [(mark, parts[part][method]) for part, mark in (("equal_rollouts", "o"), ("equal_seconds", "s"))
                if method in parts[part] and parts[part][method][key]]  # fmt: skip
        color, aside = COLORS[number % len(COLORS)], 1.025 ** (number - (len(methods) - 1) / 2)
        places = [row[key] * aside for _, row in rows]
        axes.plot(places, [row["overall"]["score"] for _, row in rows], color=color, alpha=0.5, label=method)
        for place, (mark, row) in zip(places, rows, strict=True):
            overall = row["overall"]
            axes.plot([place] * 2, [overall["low"], overall["high"]], color=color, linewidth=1.5, alpha=0.6)
            axes.plot([place], [overall["score"]], mark, color=color)
