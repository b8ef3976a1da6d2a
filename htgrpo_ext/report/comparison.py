"""Finished runs side by side: compare.json, .md, .png and .html, and the printed table.

S seeds, Q prompts, I images per prompt.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL.Image import Image
from rich.console import Console

from htgrpo_ext.benchmarks import Benchmark, benchmark_of
from htgrpo_ext.errors import UserError
from htgrpo_ext.files import write_atomically
from htgrpo_ext.report.comparison_page import Part, comparison_page
from htgrpo_ext.report.curves import SMOOTHED_CYCLES, STYLE, running_mean
from htgrpo_ext.report.folder import Scored, read_config, read_metrics, read_prompts, read_scored, read_summary
from htgrpo_ext.report.gallery import IMAGES_SHOWN, Gallery, Measure, Prompt, Run, gallery
from htgrpo_ext.report.tables import Grid, half_width, interval, markdown, short, terminal

INTERVALS = (
    "Scores are means over seeds; gains are medians over seeds. Intervals: 95 %, by bootstrap over prompts within each "
    "task, the same prompts for all seeds; the spread of the seeds is added as Student's t. A task's ± is half its "
    "interval's width."
)
BESIDE = "Means over seeds, with intervals as of the scores. No score counts these numbers."
FORWARDS = "Forwards are rows through the model a cycle; seconds are means over seeds of a whole run."
KINDS = ("rollout", "old", "reference", "new")
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#8c564b")


def write_comparison(folders: Sequence[Path], out: Path, console: Console) -> dict:
    """Write compare.json, .md, .png and .html for finished runs, in the order given, and print the table.

    Returns what compare.json holds: every run's summary, and the methods' numbers over their seeds. Raises UserError
    if the runs were not all evaluated by one benchmark with equal settings.
    """
    benchmark = benchmark_of(read_config(folders[0]))
    unlike = [folder for folder in folders if benchmark_of(read_config(folder)) != benchmark]
    if benchmark is None or unlike:
        raise UserError(f"{[*unlike, folders[0]][0]}: only runs that were evaluated alike can be compared (eval)")
    grouped: dict[str, list[Path]] = {}
    for folder in folders:
        grouped.setdefault(read_summary(folder)["label"], []).append(folder)
    methods = {label: _over_seeds(of_method, benchmark) for label, of_method in grouped.items()}
    published = benchmark.published.rows if benchmark.published else {}
    columns = (*benchmark.task_names, "overall")
    result = {
        "runs": [read_summary(folder) for folder in folders],
        "base": _base(folders[0], benchmark),
        "methods": methods,
        "intervals": INTERVALS,
        "paper": {
            label: dict(zip(columns, published[label], strict=True))
            for label in ("base", *methods)
            if label in published
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "compare.json", json.dumps(result, indent=2) + "\n")
    scores, cost = _score_rows(result, benchmark), _cost_rows(result)
    together = Grid(benchmark.title, [[*row, *rest[1:]] for row, rest in zip(scores, cost, strict=True)])
    words, tables = " ".join([INTERVALS, FORWARDS, *_lacking(result)]), terminal(together, console.width)
    apart = [Grid(benchmark.title, scores), Grid("Cost", cost)]
    if len(tables) > 1:  # too narrow a terminal for scores beside cost
        tables = [table for grid in apart for table in terminal(grid, console.width)]
    text = f"# {benchmark.title}\n\n{markdown(together)}\n\n{words}\n\n"
    _draw(grouped, result, benchmark.title, out / "compare.png")
    parts = [Part(benchmark.title, "", apart, figure=(out / "compare.png").read_bytes())]
    if benchmark.measures:
        beside = Grid("Beside the scores", _measure_rows(result, benchmark))
        text += f"# {beside.title}\n\n{markdown(beside)}\n\n{BESIDE}\n\n"
        tables += terminal(beside, console.width)
        parts.append(Part(beside.title, BESIDE, [beside]))
    if benchmark.published:
        paper = Grid(benchmark.published.title, _published_rows(result, benchmark))
        text += f"# {paper.title}\n\n{markdown(paper)}\n\n{benchmark.published.note}\n\n"
        tables += terminal(paper, console.width)
        parts.append(Part(paper.title, benchmark.published.note, [paper]))
    write_atomically(out / "compare.md", f"{text}![](compare.png)\n")
    title = f"{benchmark.title} · {', '.join(grouped)}"
    page = comparison_page(title, _facts(folders, result), parts, words, [_gallery(grouped, benchmark)])
    write_atomically(out / "compare.html", page)
    for table in tables:
        console.print(table)
    console.print(words, highlight=False)
    console.print(out / "compare.html", highlight=False, soft_wrap=True)
    return result


# --- numbers ---------------------------------------------------------------------------------------------------


def _over_seeds(folders: Sequence[Path], benchmark: Benchmark) -> dict:
    """One method's runs, one per seed."""
    summaries = [read_summary(folder) for folder in folders]
    prompts, resampling = read_prompts(folders[0]), benchmark.model_copy(update={"seed": summaries[0]["seed"]})
    trained = [read_scored(folder, "trained") for folder in folders]
    trained_SQI = np.stack([scored.correct_QI for scored in trained]).astype(float)
    base_SQI = np.stack([read_scored(folder, "base").correct_QI for folder in folders])
    scores, gain = (resampling.summarise(prompts, values) for values in (trained_SQI, trained_SQI - base_SQI))
    forwards = {kind: mean(s["forwards"].get(kind, 0) / max(1, s["cycles"]) for s in summaries) for kind in KINDS}
    spent = [s["seconds"] for s in summaries]
    return {
        "method": summaries[0]["method"],
        "seeds": [s["seed"] for s in summaries],
        "overall": _spread(scores["overall"], [s["trained"]["overall"] for s in summaries]),
        "tasks": {
            task: _spread(score, [s["trained"]["tasks"][task]["score"] for s in summaries])
            for task, score in scores["tasks"].items()
        },
        "gain": _spread(gain["overall"], [s["gain"] for s in summaries]),
        "forwards_per_cycle": forwards | {"total": sum(forwards.values())},
        "seconds": {
            "score_and_update": mean(part.get("score", 0.0) + part.get("update", 0.0) for part in spent),
            "total": mean(sum(part.values()) for part in spent),
        },
        **_measured(trained, prompts, resampling),
    }


def _measured(runs: Sequence[Scored], prompts: list[dict], benchmark: Benchmark) -> dict:
    """What the benchmark measured beside its scores, summed up like these, or why it is lacking; {} if it has none."""
    found = {}
    for name in benchmark.measures:
        values = [scored.measures.get(name, "not measured") for scored in runs]
        if why := next((each for each in values if isinstance(each, str)), None):
            found[name] = {"lacking": why}
        else:
            overall = benchmark.summarise(prompts, np.stack(values))["overall"]
            found[name] = {"mean": overall["score"], "interval": [overall["low"], overall["high"]]}
    return {"measures": found} if found else {}


def _spread(estimate: dict, of_seeds: list[float]) -> dict:
    interval = [estimate["low"], estimate["high"]]
    return {"mean": mean(of_seeds), "median": median(of_seeds), "interval": interval, "of_seeds": of_seeds}


def _base(folder: Path, benchmark: Benchmark) -> dict:
    """The base model's scores; every run starts from it and evaluates it with the same noise."""
    base = read_summary(folder)["base"]
    return {
        "overall": {"mean": base["overall"], "interval": base["interval"]},
        "tasks": {t: {"mean": s["score"], "interval": s["interval"]} for t, s in base["tasks"].items()},
        **_measured([read_scored(folder, "base")], read_prompts(folder), benchmark),
    }


# --- tables ----------------------------------------------------------------------------------------------------


def _score_rows(result: dict, benchmark: Benchmark) -> list[list[str]]:
    tasks = list(result["base"]["tasks"])
    rows = [["method", *map(benchmark.task_words, tasks), "overall", "median gain"]]
    for label, numbers in {"base": result["base"], **result["methods"]}.items():
        cells = []
        for task in tasks:
            of_task = numbers["tasks"][task]
            cells.append(f"{short(of_task['mean'])} {half_width(*of_task['interval'])}")
        overall = f"{short(numbers['overall']['mean'])} {interval(*numbers['overall']['interval'])}"
        gain = short(numbers["gain"]["median"], "+") if "gain" in numbers else "–"
        rows.append([label, *cells, overall, gain])
    return rows


def _measure_rows(result: dict, benchmark: Benchmark) -> list[list[str]]:
    rows = [["method", *benchmark.measures.values()]]
    for label, numbers in {"base": result["base"], **result["methods"]}.items():
        cells = []
        for name in benchmark.measures:
            measured = numbers["measures"][name]
            low, high = measured.get("interval", (0.0, 0.0))
            cells.append("–" if "lacking" in measured else f"{measured['mean']:.3f} ±{(high - low) / 2:.3f}")
        rows.append([label, *cells])
    return rows


def _lacking(result: dict) -> list[str]:
    """Why measures are lacking, a sentence each."""
    of_all = [numbers.get("measures", {}) for numbers in (result["base"], *result["methods"].values())]
    reasons = (measured.get("lacking") for measures in of_all for measured in measures.values())
    return [f"–: {reason}." for reason in dict.fromkeys(reasons) if reason]


def _cost_rows(result: dict) -> list[list[str]]:
    rows = [["method", *KINDS, "forwards", "score + update s", "total s"], ["base", *["–"] * 7]]
    for label, numbers in result["methods"].items():
        forwards = [f"{numbers['forwards_per_cycle'][kind]:,.0f}" for kind in (*KINDS, "total")]
        seconds = [f"{numbers['seconds'][part]:,.1f}" for part in ("score_and_update", "total")]
        rows.append([label, *forwards, *seconds])
    return rows


def _published_rows(result: dict, benchmark: Benchmark) -> list[list[str]]:
    rows = [["method", *benchmark.task_names.values(), "overall"]]
    for label in ("base", *result["methods"]):
        published = result["paper"].get(label, {}).values()
        rows.append([label, *(map(short, published) if published else "–" * (len(rows[0]) - 1))])
    return rows


# --- page ------------------------------------------------------------------------------------------------------


def _facts(folders: Sequence[Path], result: dict) -> list[tuple[str, str]]:
    seeds = sorted({run["seed"] for run in result["runs"]})
    evaluation = f"{result['runs'][0]['prompts']:,} prompts, {result['runs'][0]['images']:,} images"
    model = read_config(folders[0])["model"]["name"]
    return [("model", model), ("seeds", ", ".join(map(str, seeds))), ("evaluation", evaluation)]


def _gallery(grouped: dict[str, list[Path]], benchmark: Benchmark) -> Gallery:
    """The base model's images, and those of each method's first run."""
    first = {label: folders[0] for label, folders in grouped.items()}
    folder = next(iter(first.values()))
    scored = {"base": read_scored(folder, "base")} | {row: read_scored(of, "trained") for row, of in first.items()}
    runs = [
        Run(label, partial(_pictures, benchmark, one), one.correct_QI, one.reasons_QI) for label, one in scored.items()
    ]
    measures = [
        Measure("verdict", np.array([one.correct_QI for one in scored.values()], dtype=float)),
        Measure("partial credit", np.array([one.partial_QI for one in scored.values()], dtype=float)),
    ]
    prompts = [Prompt(prompt["prompt"], benchmark.task_words(prompt["tag"])) for prompt in read_prompts(folder)]
    title = "Images" if len(first) == sum(map(len, grouped.values())) else "Images, the first run of each method"
    return gallery(title, prompts, runs, measures)


def _pictures(benchmark: Benchmark, scored: Scored, place: int) -> list[Image]:
    return benchmark.show(scored.kept_QI[place, :IMAGES_SHOWN])


# --- figure ----------------------------------------------------------------------------------------------------


def _draw(grouped: dict[str, list[Path]], result: dict, title: str, path: Path) -> None:
    """Learning curves (mean and range over seeds), and score against the seconds that tell methods apart."""
    cycles = {label: [read_metrics(folder)[1] for folder in folders] for label, folders in grouped.items()}
    everything = [entry for runs in cycles.values() for run in runs for entry in run]
    # The first reward of all runs rather than their mixture, whose weights and scales may differ.
    common = [key for key in everything[0] if key.endswith("_mean") and all(key in entry for entry in everything)]
    key = next((key for key in common if key != "reward_mean"), "reward_mean")
    with matplotlib.rc_context({**STYLE, "font.size": 10}):
        figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=110)
        learning, cost = figure.subplots(1, 2)
        for i, (label, numbers) in enumerate(result["methods"].items()):
            color, marker = COLORS[i % len(COLORS)], "o" if i < len(COLORS) else "s"
            length = min(len(run) for run in cycles[label])
            curves_SC = np.array([running_mean([entry[key] for entry in run[:length]]) for run in cycles[label]])
            x = np.arange(1, length + 1)
            learning.plot(
                x, curves_SC.mean(0), color=color, linewidth=2, label=label, ls="-" if marker == "o" else "--"
            )
            learning.fill_between(x, curves_SC.min(0), curves_SC.max(0), color=color, alpha=0.15, linewidth=0)
            seconds, score = numbers["seconds"]["score_and_update"], numbers["overall"]["mean"]
            low, high = numbers["overall"]["interval"]
            cost.plot([seconds] * 2, [low, high], color=color, linewidth=1.5, alpha=0.6)
            cost.plot([seconds], [score], marker, color=color)
            cost.annotate(label, (seconds, score), (6, 5), textcoords="offset points", fontsize=8.5, color=color)
        learning.set(xlabel="cycle", title=f"{key.removesuffix('_mean')} in training, over {SMOOTHED_CYCLES} cycles")
        learning.legend(loc="upper left", ncols=2)
        learning.margins(y=0.2)
        base = result["base"]["overall"]["mean"]
        cost.axhline(base, color="#9aa3ad", linestyle=":", linewidth=1.5)
        cost.annotate("base", (0.99, base), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right", fontsize=8.5, color="#66707a")  # fmt: skip
        cost.set(xlabel="seconds in scoring and updates, a run", title=f"{title} overall after training")
        spent = [numbers["seconds"]["score_and_update"] for numbers in result["methods"].values()]
        if min(spent) > 0 and max(spent) > 8 * min(spent):
            cost.set_xscale("log")
        cost.margins(x=0.25, y=0.15)
        figure.savefig(path)
