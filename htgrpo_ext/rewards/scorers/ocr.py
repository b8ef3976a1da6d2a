"""Text in pictures: what RapidOCR reads, compared with the text that the prompt asks for.

ocr          1 - edit distance / length, in [0, 1]: `htgrpo_ext.rewards.texts`
ocr-exact    1 where both are equal but for case and white space, else 0
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from htgrpo_ext.rewards.ocr import Reader
from htgrpo_ext.rewards.texts import plain, similarity, wanted_text


class Scorer:
    """detection  True: find lines of text first. False: the picture is one line of text
    threads    of the models, which are on the CPU whatever the device
    """

    rewards = ("ocr", "ocr-exact")
    check_prompt = staticmethod(wanted_text)

    def __init__(self, device: torch.device, detection: bool = True, threads: int = 1):
        self.reader = Reader(detection, threads)

    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """See `Scorer` in scorers/__init__.py. Raises ValueError for a prompt without a text."""
        wanted = [wanted_text(prompt) for prompt in prompts]
        found = [self.reader.read(image) for image in images]  # one by one: batches were slower, and equal
        pairs = list(zip(found, wanted, strict=True))
        return {
            "ocr": [similarity(one, other) for one, other in pairs],
            "ocr-exact": [float(plain(one) == plain(other)) for one, other in pairs],
        }
