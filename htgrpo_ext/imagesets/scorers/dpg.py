"""DPG-Bench by its authors' script: mPLUG answers questions about each of a prompt's images with yes or no.

github.com/TencentQQGYLab/ELLA; launch/eval/dpg.sh makes the environment.

The script skips the first row of its questions. One item loses a question, others of its questions refer to that one,
and the script drops the item. Of the categories it counts the last tile only. Both numbers are reported: as the script
counts, and repaired. For the repaired one the same script is asked again about the item that it drops, with a file of
questions whose first row may be skipped.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.base import Item
from htgrpo_ext.imagesets.columns import Column, Columns
from htgrpo_ext.imagesets.scorers.base import Known, Pictures
from htgrpo_ext.imagesets.scorers.calibration import blanks
from htgrpo_ext.imagesets.scorers.dpg_questions import (
    Question,
    Questions,
    broad,
    read_questions,
    tile_score,
    write_questions,
)
from htgrpo_ext.imagesets.scorers.dpg_script import Answers, Reply, read_reply
from htgrpo_ext.imagesets.scorers.official import ENVIRONMENTS, Official
from htgrpo_ext.imagesets.scorers.sums import by_item
from htgrpo_ext.imagesets.scores import ScoreLine

BROAD = {"global": "Global", "entity": "Entity", "attribute": "Attribute", "relation": "Relation", "other": "Other"}
DOG = "assets/emma/emma_b.jpg"  # in the checkout: a picture of a dog


class DPG(Official):
    name = "dpg"
    title = "DPG-Bench"
    suites = ("dpg",)
    metrics = ("dpg",)

    checkout: Path = ENVIRONMENTS / "dpg-checkout"
    python: Path = ENVIRONMENTS / "dpg/bin/python"
    commit: str = "3c228f1dc6c4d3cad0a47493816151a419f14db3"
    csv: Path | None = None  # the questions; None: the checkout's
    processes: int = 1  # one on each GPU

    script = "dpg_bench/compute_dpg_bench.py"
    setup = "launch/eval/dpg.sh"
    packages: ClassVar[tuple[str, ...]] = ("torch", "modelscope", "transformers")

    @property
    def questions(self) -> Path:
        return self.csv or self.checkout / "dpg_bench/dpg_bench.csv"

    def prepare(self) -> dict:
        return super().prepare() | {"first_question": read_questions(self.questions)[1]}

    def known(self) -> list[Known]:
        """A blank picture shows no dog, and a picture of a dog shows one."""
        ask = Item("", "Is there a dog?", {"question": "Is there a dog?"})
        known = [Known(ask._replace(key=name), image, {"dpg": (0, 0)}) for name, image in blanks()]
        return known + self.picture_of(self.checkout / DOG, ask, "dpg")

    def score(self, pictures: Pictures, work: Path) -> Iterator[ScoreLine]:
        own = {item.key: item.metadata.get("question") for item in pictures.items}
        if all(own.values()):  # calibration
            questions: Questions = {key: {1: Question("entity", (0,), str(text))} for key, text in own.items()}
            write_questions(work / "questions.csv", questions)
            answers = self._ask(pictures, questions, work / "questions.csv", work / "script").answers
            yield from _lines(pictures.items, answers, questions)
            return
        questions, lost = read_questions(self.questions)
        if unknown := [item.key for item in pictures.items if item.key not in questions]:
            raise UserError(f"{self.questions}: no question about {unknown[0]}")
        read = {key: {n: q for n, q in each.items() if (key, n) != lost} for key, each in questions.items()}
        reply = self._ask(pictures, read, self.questions, work / "script", may_fail=lost[0])
        answers = dict(reply.answers)
        if again := [item for item in pictures.items if item.key == lost[0]]:
            alone = pictures._replace(items=again, root=work / "first-item")
            alone.root.mkdir()
            for file in pictures.suite.files(pictures.root, again):
                shutil.copy(file, alone.root)
            write_questions(work / "questions.csv", {lost[0]: questions[lost[0]]})
            answers |= self._ask(alone, questions, work / "questions.csv", work / "script-repaired").answers
        lines = _lines(pictures.items, answers, questions)
        self._compare(pictures, lines, reply, work)
        yield from lines

    def _ask(self, pictures: Pictures, questions: Questions, csv: Path, work: Path, may_fail: str = "") -> Reply:
        """Run the script on the images of a folder. questions: those of `csv` that it reads."""
        tiles, (side, height) = pictures.images_per_prompt, pictures.size
        if side != height or tiles > 4:
            raise UserError(f"{pictures.root}: the script reads up to 4 square tiles, not {tiles} of {side} x {height}")
        work.mkdir()
        root, result = pictures.root.absolute(), work.absolute() / "result.txt"
        files = {item.key: next(iter(pictures.suite.files(root, [item]))) for item in pictures.items}
        command: list[str | Path] = [self.python.absolute()]
        if self.processes > 1:
            command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
            command += ["--num_processes", str(self.processes)]
        command += [self.script, "--image-root-path", root, "--resolution", str(side), "--csv", csv.absolute()]
        command += ["--res-path", result, "--pic-num", str(tiles), "--vqa-model", "mplug"]
        log = self.run(command, work / "log.txt", result)
        return read_reply(result, log, files, questions, tiles, side, may_fail)

    def _compare(self, pictures: Pictures, lines: Sequence[ScoreLine], reply: Reply, work: Path) -> None:
        """Raise UserError if our count of its answers, by its rules, is not the script's."""
        about = {"first_question": read_questions(self.questions)[1], **self.learnt(pictures.items)}
        columns = {column.name: column for column in self.columns_official(pictures.items, lines, about).columns}
        theirs = {"overall": reply.overall} | (reply.broad if self.processes == 1 else {})  # else they are mixed up
        for name, value in theirs.items():
            column = columns.get(name)
            ours = column.scale * column.total_Q.sum() / max(1, column.count_Q.sum()) if column else float("nan")
            if not abs(ours - value) <= 1e-6 and not np.isnan(value):  # NaN is the script's mean of nothing
                raise UserError(
                    f"scorer {self.name}: {name} is {value:g} by the script, {ours:g} by its lines ({work})"
                )

    def learnt(self, items: Sequence[Item]) -> dict:
        """The category and the parents of every question."""
        questions, _ = read_questions(self.questions)
        return {"questions": {i.key: {n: [q.category, q.parents] for n, q in questions[i.key].items()} for i in items}}

    def columns(self, items: Sequence[Item], lines: Sequence[ScoreLine], about: Mapping) -> Columns:
        """Repaired: all prompts, all questions, all tiles."""

        def counted(item: Item, of_item: list[ScoreLine], parents: Mapping) -> tuple[list[float], list[Answers]]:
            tiles = [_answers(line) for line in of_item]
            return [tile_score(tile, parents) for tile in tiles], tiles

        return _columns(items, lines, about, counted)

    def columns_official(self, items: Sequence[Item], lines: Sequence[ScoreLine], about: Mapping) -> Columns:
        """As the script counts: no first question, no item that refers to it, categories of the last tile."""
        lost_item, lost = about["first_question"]

        def counted(item: Item, of_item: list[ScoreLine], parents: Mapping) -> tuple[list[float], list[Answers]]:
            if item.key == lost_item:
                parents = {number: each for number, each in parents.items() if number != lost}
            tiles = [{number: each for number, each in _answers(line).items() if number in parents} for line in of_item]
            try:
                return [tile_score(tile, parents) for tile in tiles], tiles[-1:]
            except (KeyError, ZeroDivisionError):
                return [], []

        return _columns(items, lines, about, counted)


def _lines(items: Sequence[Item], answers: Mapping[str, list[Answers]], questions: Questions) -> list[ScoreLine]:
    lines = []
    for item in items:
        parents = {number: question.parents for number, question in questions[item.key].items()}
        for image, tile in enumerate(answers[item.key]):
            unmet = next((questions[item.key][number].text for number, yes in tile.items() if not yes), "")
            values = {"dpg": tile_score(tile, parents)}
            lines.append(ScoreLine(item.key, image, values, unmet, {str(n): yes for n, yes in tile.items()}))
    return lines


def _answers(line: ScoreLine) -> Answers:
    return {int(number): yes for number, yes in line.answers.items()}


def _columns(items: Sequence[Item], lines: Sequence[ScoreLine], about: Mapping, counted: Callable) -> Columns:
    """counted(item, its lines, parents by question) gives the scores of tiles and the answers that count."""
    groups = by_item(items, lines)
    others = {broad(category) for each in about["questions"].values() for category, _ in each.values()}
    names = [*BROAD, *sorted(others - BROAD.keys())]
    total = {name: np.zeros(len(items)) for name in [*names, "overall"]}
    count = {name: np.zeros(len(items)) for name in [*names, "overall"]}
    for place, (item, of_item) in enumerate(zip(items, groups, strict=True)):
        questions = {int(number): each for number, each in about["questions"][item.key].items()}
        scores, tiles = counted(item, of_item, {number: parents for number, (_, parents) in questions.items()})
        if scores:
            total["overall"][place], count["overall"][place] = sum(scores) / len(scores), 1
        for tile in tiles:
            for number, yes in tile.items():
                name = broad(questions[number][0])
                total[name][place] += yes
                count[name][place] += 1
    columns = [Column(name, BROAD.get(name) or name, total[name], count[name], 100.0) for name in names]
    columns.append(Column("overall", "Overall", total["overall"], count["overall"], 100.0))
    return Columns(tuple(columns), np.full(len(items), ""), "overall")
