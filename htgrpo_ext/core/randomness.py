"""Our own random draws: each from a generator that is derived from its purpose, never from the global RNG.

Noise is drawn per prompt, from (seed, purpose, index.., the prompt's place in the global batch). So the numbers are
the same on one process or eight, and in one forward batch or twenty.

B rollouts = prompts x G, G rollouts per prompt.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from any mix of numbers and words. Different parts give unrelated seeds."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derived_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `derived_seed(*parts)`."""
    return torch.Generator().manual_seed(derived_seed(*parts))


@dataclass(frozen=True)
class Draws:
    """The noise of one batch of rollouts.

    seed                 the run's (or the evaluation's) seed
    moment               the cycle's number, or a name such as "evaluation"
    prompts              place of each prompt in the global batch
    rollouts_per_prompt  G
    """

    seed: int
    moment: int | str
    prompts: Sequence[int]
    rollouts_per_prompt: int

    def uniform(self, purpose: str, *index: int, shape: tuple[int, ...]) -> Tensor:
        """Uniform noise in [0, 1), float32 [B, *shape], for one purpose and index (an update, a step)."""
        return torch.cat(
            [
                torch.rand(
                    self.rollouts_per_prompt,
                    *shape,
                    generator=derived_generator(self.seed, purpose, self.moment, *index, prompt),
                )
                for prompt in self.prompts
            ]
        )
