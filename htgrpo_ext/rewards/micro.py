"""The rewards of the micro world, by its exact verifier.

B images, N tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from htgrpo_ext.micro import world
from htgrpo_ext.micro.verifier import Verdict, verify
from htgrpo_ext.micro.world import Prompt
from htgrpo_ext.rewards.geneval import check

MICRO_REWARDS = {
    "verdict": lambda verdict: float(verdict.correct),
    "partial": lambda verdict: verdict.partial,
}


def verdicts(prompts: Sequence[Prompt], codes_BN: Tensor) -> list[Verdict]:
    """The verdict on each image, codes int64 [B, N], against its own prompt."""
    return [verify(prompt, codes) for prompt, codes in zip(prompts, codes_BN.tolist(), strict=True)]


def score_codes(prompts: Sequence[Prompt], codes_BN: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Each named reward, float32 [B]. Raises ValueError for metadata that are malformed or cannot be met."""
    for prompt in prompts:
        check(prompt, world.CLASSES, world.COLORS)
    judged = verdicts(prompts, codes_BN)
    return {name: torch.tensor([MICRO_REWARDS[name](verdict) for verdict in judged]) for name in names}
