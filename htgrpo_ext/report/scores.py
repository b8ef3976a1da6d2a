"""The numbers of a comparison of sets: scores with intervals, paired differences, and what it takes to see them.

Q prompts, I images per prompt, S runs of a row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from htgrpo_ext.benchmarks import paper
from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.columns import Columns
from htgrpo_ext.report.sets import ScoredSet
from htgrpo_ext.statistics import Part, Resampled, Resampling

SEED = 0  # of the resampling
PREFERENCE = "preference"  # the table of all scorers that are of no benchmark
PAPER = {  # by table
    "geneval": paper.GENEVAL,
    "micro": paper.GENEVAL,
    "dpg": paper.DPG,
    "dpg-official": paper.DPG,
    PREFERENCE: paper.PREFERENCE,
}
WORDS = (
    "Intervals: 95 %, by bootstrap over prompts within each task, the same prompts for all rows; ± is half an "
    "interval's width. The spread of a row's runs is added as Student's t. A difference is paired prompt by prompt; * "
    "marks one whose interval excludes 0. Images needed: so many of each run, at as many per prompt, would show a "
    "difference of this size in four of five comparisons (normal approximation, 5 %, the same runs). Where nearly all "
    "images of a task agree, its interval is too narrow."
)
ANOTHER = "MicroEval is another evaluation, of another model: read its numbers beside the paper's, not against them."


def summarise(benches: Mapping[str, Sequence[ScoredSet]], baseline: str | None = None) -> dict:
    """The content of summary.json.

    baseline  label of the row that differences are from; None: the first set's

    Raises UserError if a benchmark has no row of that label.
    """
    tables = [table for sets in benches.values() for table in _tables(sets, baseline)]
    return {"tables": tables, "words": WORDS}


def _tables(sets: Sequence[ScoredSet], baseline: str | None) -> Iterator[dict]:
    """The tables of one benchmark: its own scorers', and one of all others."""
    rows: dict[str, list[ScoredSet]] = {}
    for one in sets:
        rows.setdefault(one.label, []).append(one)
    suite = sets[0].suite
    base = sets[0].label if baseline is None else baseline
    if base not in rows:
        raise UserError(f"--baseline {base}: no such row of {suite.title} (one of {', '.join(rows)})")

    def table(name: str, title: str, columns_of: Callable[[ScoredSet], Columns]) -> dict:
        return _table(name, title, rows, {row: [columns_of(one) for one in runs] for row, runs in rows.items()}, base)

    own = {name: scored for name, scored in sets[0].scores.items() if scored.scorer.suites is not None}
    for name, scored in own.items():
        yield table(name, scored.scorer.title, lambda one, name=name: one.scores[name].columns)
        if scored.official is not None:
            title = f"{scored.scorer.title} as its script counts"
            yield table(f"{name}-official", title, lambda one, name=name: _official(one, name))
    if others := [name for name in sets[0].scores if name not in own]:
        title = f"Preference and quality metrics, {suite.title}"
        yield table(PREFERENCE, title, lambda one: _joined([one.scores[name].columns for name in others]))


def _official(one: ScoredSet, name: str) -> Columns:
    if (columns := one.scores[name].official) is None:
        raise UserError(f"{one.folder}: {name} scored it otherwise than the other sets; score it again")
    return columns


def _joined(each: Sequence[Columns]) -> Columns:
    """The columns of several scorers, the paper's first and in its order; none is an overall score."""
    order = {name: place for place, name in enumerate(paper.PREFERENCE.columns)}
    columns = sorted((c for one in each for c in one.columns), key=lambda column: order.get(column.name, len(order)))
    return Columns(tuple(columns), each[0].strata_Q, "")


# --- one table -------------------------------------------------------------------------------------------------


def _table(
    name: str, title: str, rows: Mapping[str, Sequence[ScoredSet]], columns: Mapping[str, Sequence[Columns]], base: str
) -> dict:
    """columns: of each row, its S runs'"""
    first, record = columns[base][0], rows[base][0].record
    resampling = Resampling(first.strata_Q.tolist(), SEED)
    scores = {row: _row(first, runs, resampling, number) for number, (row, runs) in enumerate(columns.items())}
    published = list(_published(name, rows))
    return {
        "name": name,
        "bench": record.bench,
        "title": title,
        "note": " ".join([ANOTHER] * (record.bench == "microeval") + [table.note for table, _ in published[:1]]),
        "prompts": record.items,
        "images_per_prompt": record.images_per_prompt,
        "limit": record.limit,
        "baseline": base,
        "columns": _heads(first),
        "rows": [
            {
                "label": row,
                "model": runs[0].model,
                "sets": [str(one.folder) for one in runs],
                "scores": {column: _estimate(score) for column, score in scores[row].items()},
                "differences": {
                    column: _difference(score, scores[base][column], _prompts(first, column), record.images_per_prompt)
                    for column, score in scores[row].items()
                    if row != base
                },
            }
            for row, runs in rows.items()
        ],
        "paper": [
            {
                "label": f"paper: {paper.row_name(model, method, alone=len(published) == 1)}",
                "model": model,
                "method": method,
                "scores": dict(zip(table.columns, numbers, strict=True)),
            }
            for table, model in published
            for method, numbers in table.rows[model].items()
        ],
    }


def _heads(columns: Columns) -> dict[str, str]:
    """Titles of the columns that count anything, the overall score last."""
    heads = {column.name: column.title for column in columns.columns if column.count_Q.any()}
    if columns.overall == "mean":
        heads["overall"] = "Overall"
    elif columns.overall in heads:
        heads[columns.overall] = heads.pop(columns.overall)
    return heads


def _row(first: Columns, runs: Sequence[Columns], resampling: Resampling, number: int) -> dict[str, Resampled]:
    """The scores of a row, by column.

    first   another row's columns, with which all must agree on what counts
    number  of the row

    Raises UserError if they do not.
    """
    parts: dict[str, Part] = {}
    for place, column in enumerate(first.columns):
        same = [run.columns[place] for run in runs if len(run.columns) == len(first.columns)]
        alike = all(each.name == column.name and np.array_equal(each.count_Q, column.count_Q) for each in same)
        if len(same) < len(runs) or not alike:
            raise UserError(f"column {column.title}: not all sets count the same images or answers; score them again")
        if column.count_Q.any():
            parts[column.name] = (np.stack([each.total_Q for each in same]) * column.scale, column.count_Q)
    scores = {name: resampling.score([part], number) for name, part in parts.items()}
    if first.overall == "mean":
        scores["overall"] = resampling.score(list(parts.values()), number)
    return scores


def _prompts(columns: Columns, name: str) -> int:
    """How many prompts count in a column."""
    return next((int((c.count_Q > 0).sum()) for c in columns.columns if c.name == name), len(columns.strata_Q))


def _estimate(score: Resampled) -> dict:
    low, high = score.interval
    return {"score": score.value, "low": low, "high": high}


def _difference(ours: Resampled, theirs: Resampled, prompts: int, images: int) -> dict:
    difference = ours.minus(theirs)
    needed = difference.prompts_needed(prompts)
    return _estimate(difference) | {
        "beyond_noise": difference.beyond_noise,
        "prompts_needed": needed,
        "images_needed": None if needed is None else needed * images,
    }


def _published(name: str, rows: Mapping[str, Sequence[ScoredSet]]) -> Iterator[tuple[paper.Published, str]]:
    """The paper's table, once for each of our models that it has. The micro world is set beside its MMaDA."""
    models = [one.model for runs in rows.values() for one in runs]
    for model in dict.fromkeys("mmada" if model == "micro" else model for model in models):
        if (table := PAPER.get(name)) and model in table.rows:
            yield table, model
