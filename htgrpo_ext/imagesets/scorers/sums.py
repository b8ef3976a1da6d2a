"""Sums of score lines per prompt.

Q items (prompts), I images per prompt.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from htgrpo_ext.imagesets.base import Item
from htgrpo_ext.imagesets.columns import Column, Columns
from htgrpo_ext.imagesets.scores import ScoreLine

TASKS = {  # GenEval's, with the titles of the paper's table
    "single_object": "Single Obj.",
    "two_object": "Two Obj.",
    "counting": "Counting",
    "colors": "Colors",
    "position": "Position",
    "color_attr": "Attr.",
}


def by_item(items: Sequence[Item], lines: Sequence[ScoreLine]) -> list[list[ScoreLine]]:
    """The lines of each item."""
    found: dict[str, list[ScoreLine]] = {item.key: [] for item in items}
    for line in lines:
        found[line.item].append(line)
    return list(found.values())


def task_columns(items: Sequence[Item], lines: Sequence[ScoreLine]) -> Columns:
    """Accuracy of each task over its images, by `correct`; overall is the unweighted mean of the tasks that occur."""
    tag_Q = np.array([item.tag for item in items])
    groups = by_item(items, lines)
    correct_Q = np.array([sum(line.values["correct"] for line in group) for group in groups], dtype=np.float64)
    images_Q = np.array([len(group) for group in groups], dtype=np.float64)
    tasks = [task for task in TASKS if task in tag_Q] + sorted(set(tag_Q.tolist()) - TASKS.keys())
    columns = (
        Column(task, TASKS.get(task, task), np.where(tag_Q == task, correct_Q, 0), np.where(tag_Q == task, images_Q, 0))
        for task in tasks
    )
    return Columns(tuple(columns), tag_Q, "mean")


def mean_columns(
    items: Sequence[Item], lines: Sequence[ScoreLine], titles: Mapping[str, str], overall: str = ""
) -> Columns:
    """The mean of each metric in `titles`, over the images that have it."""
    groups = by_item(items, lines)
    columns = []
    for metric, title in titles.items():
        values_Q = [[line.values[metric] for line in group if metric in line.values] for group in groups]
        total_Q = np.array([sum(values) for values in values_Q], dtype=np.float64)
        count_Q = np.array([len(values) for values in values_Q], dtype=np.float64)
        columns.append(Column(metric, title, total_Q, count_Q))
    return Columns(tuple(columns), np.array([item.tag for item in items]), overall)
