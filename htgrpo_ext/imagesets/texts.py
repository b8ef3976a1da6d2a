"""Prompts of a file of the user's, in GenEval's layout: a text file, or JSON lines with `prompt` or another key."""

import json
from pathlib import Path

from htgrpo_ext.errors import UserError
from htgrpo_ext.imagesets.base import Item
from htgrpo_ext.imagesets.folders import FolderSuite, numbered
from htgrpo_ext.prompts.files import json_object, text_at, text_lines


class PromptFile(FolderSuite):
    name = "file"
    title = "prompts of a file"

    def items(self, prompts: Path | None, key: str = "prompt") -> list[Item]:
        if prompts is None or not prompts.is_file():
            raise UserError(f"{prompts or '--bench file'}: no such file of prompts (--bench FILE)")
        lines = []
        for text, place in text_lines(prompts):
            if prompts.suffix in (".jsonl", ".json"):
                value = json_object(text, place)
                lines.append((text_at(key, value, place, "--prompt-key"), value, text))
            else:
                lines.append((text, {"prompt": text}, json.dumps({"prompt": text})))
        if not lines:
            raise UserError(f"{prompts}: holds no prompt")
        return numbered(lines)
