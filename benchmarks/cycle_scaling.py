"""How time and memory of a cycle grow, on tiny-width models of real vocabulary. `cycle.py --scaling`

N          image tokens, of Lumina-DiMOO at 256, 512 and 1,024 pixels a side; 2 images, 4 steps
G, K, T    images a prompt, updates, denoising steps; Lumina-DiMOO at 512 pixels, else 4 images, 4 updates, 8 steps
processes  of one thread each, under torchrun: each rolls out its share of the prompts, as many as the most processes
images     of one rollout batch, tiny-width MMaDA: the sampler's peak alone, by `rollout_speed.py`

An exponent is the slope of a straight line through the logarithms: 1 means proportional, 0 that nothing changes.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median

import cycle_report
from cycle_cases import ROWS, Case, Worker, compared, trained
from measuring import machine
from rollout_speed import in_process
from shapes import ROOT

BASE = Case("lumina", prompts=1, images=4, steps=8, updates=4, width=32, layers=2)
METHODS = ("htgrpo", "maskgrpo-fixed", "tracegrpo")
SIDES = {256: 256, 1024: 512, 4096: 1024}  # pixels of N tokens
IMAGES = (1, 2, 4, 8, 16)
AMOUNTS = ("rollout", "score and update", "peak")


def exponent(values: Sequence[float], amounts: Sequence[float]) -> float:
    """The slope of log(amount) over log(value), by least squares."""
    x, y = [math.log(value) for value in values], [math.log(amount) for amount in amounts]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


def sized(case: Case, tokens: int) -> Case:
    """The case with images of so many tokens."""
    return replace(case, more=(f"model.height={SIDES[tokens]}", f"model.width={SIDES[tokens]}"))


def axes(most: int) -> dict[str, dict[int, tuple[Case, int]]]:
    """Axis, value, and the case there with its number of processes. `most` of them"""
    small = replace(BASE, images=2, steps=4)
    counts = [2**i for i in range(most.bit_length())]
    return {
        "N": {n: (sized(small, n), 1) for n in SIDES},
        "G": {g: (replace(BASE, images=g), 1) for g in (2, 4, 8, 16)},
        "K": {k: (replace(BASE, updates=k), 1) for k in (2, 4, 8, 16)},
        "T": {t: (replace(BASE, steps=t), 1) for t in (2, 4, 8, 16)},
        "processes": {n: (replace(BASE, prompts=counts[-1]), n) for n in counts},
    }


def point(case: Case, processes: int, threads: int, repeats: int) -> dict[str, dict]:
    """The methods' medians in one place, one method after another."""
    runs: dict[str, list[dict]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        changes = case.changes(Path(folder))
        for method in METHODS:
            worker = Worker(ROWS[method], case, changes, Path(folder) / method, threads, processes, repeats)
            worker.answer()
            runs[method] = [worker.answer() for _ in range(repeats)]
            worker.end()
    return compared(runs)


def measured_axis(points: dict[int, tuple[Case, int]], threads: int, repeats: int, known: dict) -> dict:
    """An axis: its values, amounts by method, and exponents. `known` keeps points, which axes share."""
    found: dict = {"values": list(points), "methods": {}, "exponents": {}, "rows": {}}
    for value, (case, processes) in points.items():
        key = (case, processes, threads)
        if key not in known:
            known[key] = point(case, processes, threads, repeats)
        for method, row in known[key].items():
            amounts = {"rollout": row["seconds"]["rollout"], "score and update": trained(row)}
            amounts["peak"] = max(row["peaks"].values())
            for amount, much in amounts.items():
                found["methods"].setdefault(method, {}).setdefault(amount, []).append(much)
            found["rows"].setdefault(method, []).append(row["rows"])
        print(f"{value}: done", file=sys.stderr, flush=True)
    for method, amounts in found["methods"].items():
        found["exponents"][method] = {key: exponent(found["values"], much) for key, much in amounts.items()}
    return found


def sampler_peaks(repeats: int, counts: Sequence[int] = IMAGES) -> dict:
    """The sampler's peak over the model, MiB, while it paints so many images of one prompt: medians."""
    found = {"values": list(counts), "peak": [], "seconds": []}
    for count in counts:
        runs = [in_process(ROOT, "mmada", images=count, prompts=1) for _ in range(repeats)]
        for key in ("peak", "seconds"):
            found[key].append(median(one[key] for one in runs))
        print(f"{count} images: {found['peak'][-1]:.0f} MiB", file=sys.stderr, flush=True)
    return found


def scaling(given) -> None:
    """Measure, print and plot; `given` are the options of `cycle.py`."""
    found: dict = {"date": date.today().isoformat(), "machine": machine(given.threads), "repeats": given.repeats}
    found |= {"base": vars(BASE) | {"more": []}, "axes": {}}
    out, known, wanted = given.out or ROOT / "benchmarks" / "cycle-scaling.json", {}, given.axis
    console = cycle_report.console()
    for axis, points in axes(os.cpu_count() or 1).items():
        if wanted and axis not in wanted:
            continue
        threads = 1 if axis == "processes" else given.threads
        one = found["axes"][axis] = measured_axis(points, threads, given.repeats, known)
        shown = cycle_report.table(f"{axis} = {', '.join(map(str, one['values']))}: exponents", "", *AMOUNTS)
        for method, exponents in one["exponents"].items():
            shown.add_row(ROWS[method].title, *(f"{exponents[amount]:.2f}" for amount in AMOUNTS))
        console.print(shown)
        out.write_text(json.dumps(found, indent=1) + "\n")
    if not wanted or "images" in wanted:
        found["images"] = sampler_peaks(given.repeats)
        out.write_text(json.dumps(found, indent=1) + "\n")
    cycle_report.plot_scaling(found, given.plot or ROOT / "docs" / "cycle-scaling.png")
    console.print(str(out))
