"""The data of a comparison of tuned methods: comparison.json, and verdicts.csv with every run's correct images.

They hold all that the tables need, without the runs: what was planned and chosen, which runs make which part, and of
each run how many images of each prompt were correct.

Q prompts.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.files import write_atomically
from htgrpo_ext.report.folder import read_config, read_prompts, read_scored, read_summary

DATA, VERDICTS = "comparison.json", "verdicts.csv"
SCORING = ("old", "reference", "new")  # rows through the model that are not rollouts
Folders = Mapping[str, Path] | Sequence[Path]
Parts = Mapping[str, Mapping[str, Folders | None]]


def median_seconds(of_runs: Sequence[Sequence[float]]) -> float:
    """The median over all timed cycles of all runs."""
    return median(seconds for of_run in of_runs for seconds in of_run)


def short_rate(rate: float) -> str:
    """0.0003 as 3e-4"""
    digits, exponent = f"{rate:.6e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def base_of(eval_seed: int) -> str:
    """What the base model's verdicts under this noise are called, among those of the runs."""
    return f"base-e{eval_seed}"


def gather(plan: dict, choices: dict, parts: Parts, seconds: Mapping[str, Sequence[Sequence[float]]]) -> dict:
    """The data of finished runs, as plain values.

    plan     the file of configs/comparison
    choices  by method: learning rate, value of its own setting, and that setting's default
    parts    by part and row: the folders of its runs, in order or by what they are called; None if one is not finished
    seconds  by method: of scoring and updates, each timed cycle of each timed run

    Raises UserError if two runs were evaluated by other prompts.
    """
    named = {part: {row: f for row, f in rows.items() if f is not None} for part, rows in parts.items()}
    folders = list(dict.fromkeys(f for rows in named.values() for of_row in rows.values() for f in _each(of_row)))
    first = read_config(folders[0])
    prompts = [{"tag": prompt["tag"], "prompt": prompt["prompt"]} for prompt in read_prompts(folders[0])]
    runs, counts, unlike = {}, {}, []
    for folder in folders:
        config, summary = read_config(folder), read_summary(folder)
        seed = config["eval"]["seed"]
        if config["eval"] | {"seed": 0} != first["eval"] | {"seed": 0}:
            raise UserError(f"{folder}: only runs that were evaluated alike can be compared (eval)")
        forwards, cycles = summary["forwards"], summary["cycles"]
        runs[folder.name] = {
            "method": summary["label"],
            "seed": summary["seed"],
            "eval_seed": seed,
            "learning_rate": config["loop"]["learning_rate"],
            "cycles": cycles,
            "rollouts": cycles * config["rollout"]["prompts_per_cycle"] * config["rollout"]["rollouts_per_prompt"],
            "scored_rows_per_cycle": sum(forwards.get(kind, 0) for kind in SCORING) / cycles,
            "warnings": summary.get("warnings", []),
        }
        base, trained = (read_scored(folder, which).correct_QI.sum(1).tolist() for which in ("base", "trained"))
        counts[folder.name] = trained
        if counts.setdefault(base_of(seed), base) != base:
            unlike.append(folder.name)
    return {
        "plan": plan,
        "model": first["model"]["name"],
        "eval": first["eval"],
        "choices": choices,
        "seconds": {method: [[round(s, 4) for s in one] for one in of_runs] for method, of_runs in seconds.items()},
        "parts": {part: {row: _names(of_row) for row, of_row in rows.items()} for part, rows in named.items()},
        "runs": runs,
        "base_differs": unlike,
        "prompts": prompts,
        "counts": counts,
    }


def _each(folders: Folders) -> Iterator[Path]:
    yield from folders.values() if isinstance(folders, Mapping) else folders


def _names(folders: Folders) -> dict[str, str] | list[str]:
    if isinstance(folders, Mapping):
        return {key: folder.name for key, folder in folders.items()}
    return [folder.name for folder in folders]


def write_data(data: dict, out: Path) -> None:
    """comparison.json and verdicts.csv."""
    table = io.StringIO()
    writer, names = csv.writer(table, lineterminator="\n"), list(data["counts"])
    writer.writerow(["task", "prompt", *names])
    for place, prompt in enumerate(data["prompts"]):
        writer.writerow([prompt["tag"], prompt["prompt"], *(data["counts"][name][place] for name in names)])
    rest = {key: value for key, value in data.items() if key not in ("prompts", "counts")}
    write_atomically(out / VERDICTS, table.getvalue())
    write_atomically(out / DATA, json.dumps(rest, indent=1) + "\n")


def read_data(folder: Path) -> dict:
    """What `write_data` wrote. Raises UserError."""
    try:
        rest = json.loads((folder / DATA).read_text(encoding="utf-8"))
        head, *rows = csv.reader(io.StringIO((folder / VERDICTS).read_text(encoding="utf-8")))
        columns = list(zip(*(map(int, row[2:]) for row in rows), strict=True))
        counts = {name: list(column) for name, column in zip(head[2:], columns, strict=True)}
        return rest | {"prompts": [{"tag": row[0], "prompt": row[1]} for row in rows], "counts": counts}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing; {folder} needs {DATA} and {VERDICTS} of a comparison") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: {DATA} or {VERDICTS} is broken ({one_line(error)})") from None
