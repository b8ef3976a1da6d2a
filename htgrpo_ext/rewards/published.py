"""Take a prompt, unchanged, out of the Python file in which its authors published it.

    python -m htgrpo_ext.rewards.published FILE.py PROMPT.txt

This project holds no copy of it: launch/rewards/unifiedreward.sh fetches the file and keeps the prompt.
"""

import ast
import sys
from pathlib import Path

CAPTION = "{caption}"  # stands for the caption in a prompt file
SCORE = "Final Score:"  # the words before the score, which a pointwise prompt asks for


def published_prompt(source: str) -> str:
    """The text of the one f-string that contains SCORE and one variable; CAPTION replaces the variable.

    The source is parsed, not run. Raises ValueError unless there is exactly one such f-string.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            texts = [str(part.value) if isinstance(part, ast.Constant) else None for part in node.values]
            literal = "".join(text for text in texts if text is not None)
            if SCORE in literal and CAPTION not in literal and texts.count(None) == 1:
                found.append("".join(CAPTION if text is None else text for text in texts))
    if len(found) != 1:
        raise ValueError(f"{len(found)} f-strings with `{SCORE}` and one variable, where one was expected")
    return found[0]


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(published_prompt(source.read_text(encoding="utf-8")), encoding="utf-8")
