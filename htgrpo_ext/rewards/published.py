"""A prompt that others published inside a Python file, taken out of it unchanged.

    python -m htgrpo_ext.rewards.published FILE.py PROMPT.txt

This project holds no sentence of theirs: launch/rewards/unifiedreward.sh fetches their file and keeps the prompt.
"""

import ast
import sys
from pathlib import Path

CAPTION = "{caption}"  # where the caption belongs, in a prompt's file
SCORE = "Final Score:"  # what a pointwise prompt asks the score to stand after


def published_prompt(source: str) -> str:
    """The text of a source's one f-string that has SCORE and one variable in it, the variable replaced by CAPTION.

    The file is read, not run. Raises ValueError unless there is exactly one such f-string.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            texts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            literal = "".join(text for text in texts if text is not None)
            if SCORE in literal and CAPTION not in literal and texts.count(None) == 1:
                found.append("".join(CAPTION if text is None else text for text in texts))
    if len(found) != 1:
        raise ValueError(f"{len(found)} f-strings with `{SCORE}` and one variable, where one was expected")
    return found[0]


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(published_prompt(source.read_text(encoding="utf-8")), encoding="utf-8")
