"""Tables, targets and plots of `cycle.py`, from what it measured."""

from pathlib import Path

from measuring import MIB
from rich import box
from rich.console import Console
from rich.table import Table

PARTS = {"rollout": "#4477aa", "score": "#ccbb44", "reward": "#bbbbbb", "update": "#ee6677"}
ELSEWHERE = {
    "exact rollout, against before: at least 1.5 times faster, peak at most a quarter": "benchmarks/rollout_speed.py",
}


def console() -> Console:
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=140)


def table(title: str, *headings: str) -> Table:
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, heading in enumerate(headings):
        made.add_column(heading, justify="right" if i else "left")
    return made


def show_case(out: Console, name: str, case: dict) -> None:
    """The methods of a case, and where HT-GRPO's time goes."""
    sizes, columns = case["sizes"], ("rollout", "score", "reward", "update", "cycle")
    title = f"{name}: P = {sizes['prompts']}, G = {sizes['images']}, K = {sizes['updates']}; medians of "
    title += f"{len(case['runs']['htgrpo'])}; in brackets: times HT-GRPO's"
    shown = table(title, "", *(f"{part} s" for part in columns), "peak MiB", "rollout's", "rows", "scored", "trained")
    for key, row in case["table"].items():
        cells = [f"{row['seconds'][part]:.2f}" for part in columns[:-1]]
        cells.append(f"{row['seconds']['cycle']:.2f} ({row['ratios']['cycle']:.1f})")
        later = "score and update"
        cells.append(f"{row['peaks'][later] / MIB:.0f} ({row['ratios'][f'peak of {later}']:.1f})")
        cells.append(f"{row['peaks']['rollout'] / MIB:.0f} ({row['ratios']['peak of rollout']:.1f})")
        shown.add_row(case["titles"][key], *cells, *(str(row["rows"][use]) for use in ("rollout", "scored", "trained")))
    out.print(shown)
    for line in case["left_out"]:
        out.print(f"left out: {line}")
    if "speeds" not in case:
        return
    kinds = list(case["profile"]["shares"]["rollout"])
    headings = ("GFLOP", "GFLOP/s", "attainable", "share", "of square", *(f"{kind} %" for kind in kinds))
    shown = table(f"{name}: what HT-GRPO's parts compute, and where their time goes", "", *headings)
    for part, speed in case["speeds"].items():
        shares = case["profile"]["shares"][part]
        shown.add_row(
            part,
            f"{case['profile']['flops'][part] / 1e9:.1f}",
            f"{speed['achieved'] / 1e9:.1f}",
            f"{speed['attainable'] / 1e9:.1f}",
            f"{speed['share']:.2f}",
            f"{speed['share of square']:.2f}",
            *(f"{100 * shares[kind]:.0f}" for kind in kinds),
        )
    out.print(shown)
    out.print(
        "attainable: matrix products of the model's own shapes, nothing else; square: one of 1,024 a side. "
        "FLOP: products and attention\n"
    )


def targets(cases: dict[str, dict]) -> list[dict]:
    """The targets that the cases measure: what is asked, what was measured, whether it is met."""
    found = []

    def add(text: str, value: float, least: float) -> None:
        found.append({"target": text, "measured": value, "least": least, "met": value >= least})

    published = cases.get("mmada", {}).get("table", {}).get("published")
    if published:
        ratios = published["ratios"]
        add("mmada: scoring and update, MaskGRPO as published / HT-GRPO", ratios["score and update"], 14)
        add("mmada: their peak, MaskGRPO as published / HT-GRPO", ratios["peak of score and update"], 8)
        add("mmada: whole cycle, MaskGRPO as published / HT-GRPO, exact rollout", ratios["cycle"], 3)
        if reusing := cases["mmada"]["table"].get("htgrpo-reuse"):
            faster = published["seconds"]["cycle"] / reusing["seconds"]["cycle"]
            add("mmada: whole cycle, MaskGRPO as published / HT-GRPO with reuse 3", faster, 4)
    for name, case in cases.items():
        for part in ("rollout", "update") if "speeds" in case else ():
            add(f"{name}: achieved / attainable FLOP/s, {part}", case["speeds"][part]["share"], 0.6)
    return found


def show_targets(out: Console, found: dict) -> None:
    shown = table("targets", "", "measured", "at least", "met")
    for target in found["targets"]:
        met = "yes" if target["met"] else "no"
        shown.add_row(target["target"], f"{target['measured']:.2f}", f"{target['least']:g}", met)
    for text, where in ELSEWHERE.items():
        shown.add_row(text, where, "", "")
    out.print(shown)
    out.print(found["machine"])


def plot_cases(found: dict, file: Path) -> None:
    """Seconds of each method by part, a panel for each case."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    cases = found["cases"]
    figure, axes = plt.subplots(1, len(cases), figsize=(5.2 * len(cases), 3.2), squeeze=False, layout="constrained")
    for axis, (name, case) in zip(axes[0], cases.items(), strict=True):
        names = list(reversed(case["table"]))
        left = [0.0] * len(names)
        for part, colour in PARTS.items():
            width = [case["table"][key]["seconds"][part] for key in names]
            axis.barh([case["titles"][key] for key in names], width, left=left, color=colour, label=part)
            left = [a + b for a, b in zip(left, width, strict=True)]
        for i, key in enumerate(names):
            axis.text(left[i], i, f" {case['table'][key]['ratios']['cycle']:.1f}x", va="center", fontsize=8)
        axis.set_title(name, loc="left")
        axis.set_xlabel("seconds of a cycle")
        axis.set_xlim(0, 1.15 * max(left))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def plot_scaling(found: dict, file: Path) -> None:
    """Time and peak against each axis, both logarithmic, with the fitted exponents; and the sampler's peak."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    axes_measured = found["axes"]
    columns = len(axes_measured) + ("images" in found)
    figure, grid = plt.subplots(3, columns, figsize=(3.2 * columns, 8), squeeze=False, layout="constrained")
    what = {"rollout": "rollout, s", "score and update": "score and update, s", "peak": "peak, MiB"}
    for column, (axis, one) in enumerate(axes_measured.items()):
        for row, (key, label) in enumerate(what.items()):
            panel = grid[row][column]
            for method, values in one["methods"].items():
                scale = MIB if key == "peak" else 1
                exponent = one["exponents"][method][key]
                heights = [value / scale for value in values[key]]
                panel.plot(one["values"], heights, "o-", label=f"{method}: {exponent:.2f}")
            panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=label if column == 0 else None)
            panel.set_xticks(one["values"], [str(value) for value in one["values"]], minor=False)
            panel.minorticks_off()
            low, high = panel.get_ylim()
            room = max(1.0, (10 * low / high) ** 0.5)  # a decade at least, so that what is flat looks flat
            panel.set_ylim(low / room, high * room)
            panel.legend(frameon=False, fontsize=7, title="exponents", title_fontsize=7)
    if "images" in found:
        plot_sampler(grid[0][-1], found["images"])
        for panel in grid[1:, -1]:
            panel.set_visible(False)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def plot_sampler(panel, images: dict) -> None:
    """Peak memory of the sampler against the number of images: flat."""
    panel.plot(images["values"], images["peak"], "o-", color="#4477aa")
    panel.set(xlabel="images of a rollout batch", title="sampler's peak over the model, MiB")
    panel.set_ylim(0, 1.2 * max(images["peak"]))
    panel.title.set_fontsize(9)
