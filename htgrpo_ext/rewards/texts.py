"""How well a text that was read off a picture is the text that the prompt asked for.

The score is that of the OCR task of Flow-GRPO (arXiv 2505.05470): the edit distance between both, at most the length of
the wanted text, divided by that length and taken from 1; case and white space do not count. Its published code
(github.com/yifan123/flow_grpo) also gives 1 to any reading that contains the wanted text. That rule is left out: it
would pay for a picture that repeats words until one of them is right.
"""

import re

from htgrpo_ext.errors import one_line

QUOTED = re.compile(r'["“”]([^"“”]*)["“”]')


def wanted_text(prompt: dict) -> str:
    """What a picture of a prompt should say: its metadata's `text`, else what stands between double quotes in it.

    Several quoted parts are one text, in their order. Raises ValueError, one line, if there is none.
    """
    text = prompt["text"] if "text" in prompt else " ".join(QUOTED.findall(prompt["prompt"]))
    if isinstance(text, str) and plain(text):
        return text
    asked = f"prompt `{one_line(prompt['prompt'], 60)}`"
    if "text" in prompt:
        raise ValueError(f"{asked}: its `text` is {one_line(repr(text), 40)}, not what a picture can say")
    raise ValueError(f'{asked}: no text to read (metadata `text`, or words between double quotes, as in a sign "OPEN")')


def plain(text: str) -> str:
    """A text in lower case, without white space."""
    return "".join(text.split()).lower()


def similarity(found: str, wanted: str) -> float:
    """1 - min(distance, length) / length of the plain texts, in [0, 1]; length is that of `wanted`, at least 1."""
    found, wanted = plain(found), plain(wanted)
    return 1 - min(edit_distance(found, wanted), len(wanted)) / len(wanted)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's distance: the fewest characters to insert, delete or replace that make `b` of `a`."""
    row = list(range(len(b) + 1))  # from the first i characters of a to the first j of b
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
