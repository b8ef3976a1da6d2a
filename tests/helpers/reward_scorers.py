"""A scorer for tests that records its batches, waits at a gate, and fails when a prompt says so."""

import threading

import torch
from torch import Tensor


def image(level: int) -> Tensor:
    return torch.full((3, 4, 4), level, dtype=torch.uint8)


def images(*levels: int) -> list[Tensor]:
    return [image(level) for level in levels]


class Levels:
    """`level` is an image's level, `double` twice as much.

    batches  the levels of each batch, in order
    entered  released at the start of each batch
    gate     each batch waits until it is set; a test may clear it
    """

    rewards = ("level", "double")

    def __init__(self, device: torch.device | None = None):
        self.batches: list[list[int]] = []
        self.entered, self.gate = threading.Semaphore(0), threading.Event()
        self.gate.set()

    def score(self, prompts, images):
        levels = [int(image[0, 0, 0]) for image in images]
        self.batches.append(levels)
        self.entered.release()
        assert self.gate.wait(30)
        faults = {prompt["prompt"] for prompt in prompts}
        if "refuse" in faults:
            raise ValueError("refused")
        if "crash" in faults:
            raise RuntimeError("crashed")
        if "exit" in faults:
            raise SystemExit(3)
        if "stop" in faults:
            raise StopIteration
        if "none" in faults:
            return None
        scores = [float(level) for level in levels]
        if "other" in faults:
            return {"double": scores}
        if "words" in faults:
            return {"level": ["good"] * len(scores)}
        if "short" in faults:
            return {"level": scores[1:]}
        odd = {"nan": float("nan"), "inf": float("-inf"), "huge": 3e38}
        level = [odd.get(prompt["prompt"], score) for prompt, score in zip(prompts, scores, strict=True)]
        return {"level": level, "double": [2 * score for score in scores]}
