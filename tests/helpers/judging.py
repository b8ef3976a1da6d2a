"""Four images of two groups, scored by a reward server; their scores are known by hand."""

import asyncio

import torch
from accelerate import Accelerator

from htgrpo_ext.rewards import mix
from htgrpo_ext.rewards.settings import RewardSettings

G = 2  # rollouts per prompt
PROMPTS = [{"prompt": f"p{b // G}"} for b in range(4)]
CODES = torch.zeros(4, 64, dtype=torch.int64)
SHADES = torch.tensor([0.0, 0.2, 0.9, -0.4])  # of each image
BRIGHT = [128.0, 153.0, 242.0, 76.0]  # their levels: round((x + 1) * 127.5)


def images() -> torch.Tensor:
    return SHADES[:, None, None, None].expand(4, 3, 8, 8)


class Clock:
    """Records the waits it is asked for, and takes no time."""

    def __init__(self):
        self.waits: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)


def rewards(url: str, clock=None, **changes) -> mix.Rewards:
    """One reward `stub` behind a server, with some settings changed."""
    term = {"name": "stub", "weight": 1.0, "url": url, "batch_size": 2, "timeout": 5.0}
    term |= {key: changes.pop(key) for key in ("batch_size", "timeout", "protocol") if key in changes}
    settings = {"mixing": "sum", "on_failure": "drop-group", "max_failed_share": 1.0, "retries": 2, "deadline": 20.0}
    settings |= {"overlap": True, "terms": [term], **changes}
    return mix.Rewards(RewardSettings(**settings), Accelerator(), G, clock or Clock())


def judge(found: mix.Rewards) -> mix.JudgedBatch:
    return found.score(PROMPTS, CODES, images)


def kept(judged: mix.JudgedBatch) -> list[bool]:
    return judged.kept_B.tolist()
