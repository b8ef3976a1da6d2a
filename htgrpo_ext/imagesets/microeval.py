"""MicroEval's held-out prompts of the micro world, 40 of each of GenEval's six tasks, in GenEval's layout."""

import json
from pathlib import Path

from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.base import Item
from htgrpo_ext.imagesets.folders import FolderSuite, numbered

PER_TASK = 40


class MicroEval(FolderSuite):
    name = "microeval"
    title = "MicroEval"

    def items(self, prompts: Path | None, key: str = "prompt") -> list[Item]:
        from htgrpo_ext.micro.world import split_prompts

        if prompts is not None or key != "prompt":
            raise UserError("MicroEval makes its own prompts (--prompts, --prompt-key)")
        return numbered([(each["prompt"], dict(each), json.dumps(each)) for each in split_prompts(PER_TASK)[1]])
