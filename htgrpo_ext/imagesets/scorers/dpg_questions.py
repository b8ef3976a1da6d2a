"""DPG-Bench's questions, and how answers become a score: from its published file, which this project does not hold."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from htgrpo_ext.errors import UserError, one_line

COLUMNS = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)


class Question(NamedTuple):
    category: str  # such as `entity - whole`
    parents: tuple[int, ...]  # questions that must be answered yes for this one to count; 0 stands for none
    text: str


def broad(category: str) -> str:
    """The column of the benchmark's table: `entity` of `entity - whole`."""
    return category.split("-")[0].strip()


Questions = dict[str, dict[int, Question]]  # by item, by proposition_id; both in the order of the file


def read_questions(path: Path) -> tuple[Questions, tuple[str, int]]:
    """All questions, and which one is in the first row: the benchmark's script does not read that.

    Raises UserError, which names the line. If the rows of an item are in several places, the last ones count, as they
    do in the script.
    """
    questions: Questions = {}
    first, previous = None, None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                item, number = row["item_id"], int(row["proposition_id"])
                if item != previous:
                    questions[item] = {}
                category = row["tuple"].split("(")[0].strip()
                parents = tuple(int(part) for part in row["dependency"].split(","))
                questions[item][number] = Question(category, parents, row["question_natural_language"])
                first, previous = first or (item, number), item
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: DPG-Bench's questions cannot be read ({one_line(error)})") from None
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path}:{reader.line_num}: no question of DPG-Bench ({one_line(repr(error))})") from None
    if first is None:
        raise UserError(f"{path}: no question in it")
    return questions, first


def write_questions(path: Path, questions: Mapping[str, Mapping[int, Question]]) -> None:
    """Write questions as the script reads them all: its first row, which it skips, is of no item."""
    rows = [("skipped", "", "", 1, "0,0", "", "", "none (none)", "none")]  # "0,0": pandas is to read words, not numbers
    for item, each in questions.items():
        for number, question in each.items():
            parents = ",".join(map(str, question.parents))
            rows.append((item, "", "", number, parents, "", "", f"{question.category} ()", question.text))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS.split(","))
        writer.writerows(rows)


def tile_score(answers: Mapping[int, bool], parents: Mapping[int, Iterable[int]]) -> float:
    """The mean of an image's answers. A question counts as no if one of its parents does; parents come first.

    Raises KeyError for a parent that was not asked, as the script does.
    """
    counts = {number: float(answers[number]) for number in parents}
    for number, each in parents.items():
        if any(counts[parent] == 0 for parent in each if parent != 0):
            counts[number] = 0.0
    return sum(counts.values()) / len(counts)
