"""GenEval (github.com/djghosh13/geneval): 553 prompts of six tasks. MaskGRPO's dataset/GenEval has the same file."""

from collections import Counter
from pathlib import Path

from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.base import Item
from htgrpo_ext.imagesets.folders import FolderSuite, numbered
from htgrpo_ext.imagesets.lines import benchmark_file, benchmark_lines
from htgrpo_ext.prompts.files import geneval_metadata, text_at

TASKS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}


class GenEval(FolderSuite):
    name = "geneval"
    title = "GenEval"

    def items(self, prompts: Path | None, key: str = "prompt") -> list[Item]:
        path = benchmark_file(prompts, "GenEval/evaluation_metadata.jsonl", self.title)
        lines = benchmark_lines(path, self.title)
        values = [geneval_metadata(text, place) for text, place in lines]
        found = Counter(value["tag"] for value in values)
        if wrong := next((task for task in TASKS | found if TASKS.get(task, 0) != found[task]), None):
            raise UserError(
                f"{path}: {found[wrong]:,} prompts of `{wrong}`, but GenEval has {TASKS.get(wrong, 0)} "
                f"({len(values):,} of {sum(TASKS.values())} in all)"
            )
        asked = [text_at(key, value, place, "--prompt-key") for value, (_, place) in zip(values, lines, strict=True)]
        return numbered([(ask, value, text) for ask, value, (text, _) in zip(asked, values, lines, strict=True)])
