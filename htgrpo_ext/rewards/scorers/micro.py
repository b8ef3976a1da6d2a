"""The micro world's verifier from pixels: it reads the codes back from the picture, token by token.

At each place the patches of all codes differ as 8-bit levels, whatever scene the decoder draws behind an object, so a
patch determines its code (tests/rewards/test_micro_pixels.py compares them all). The codes are decoded again and
compared with the picture, so a picture is never judged by codes that are not its own.

N tokens, Q pixels of a patch's side.
"""

from collections.abc import Sequence
from functools import cache
from hashlib import blake2b

import torch
from torch import Tensor

from htgrpo_ext.micro import world
from htgrpo_ext.micro.decoder import PALETTES, PATCH, SIDE, all_patches, decode_codes
from htgrpo_ext.pixels import to_levels
from htgrpo_ext.rewards.micro import MICRO_REWARDS, score_codes


class Scorer:
    """`verdict` and `partial` from pixels, equal to those from codes in process. Always on the CPU."""

    rewards = tuple(MICRO_REWARDS)

    def __init__(self, device: torch.device):
        _codes_of_patches()

    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """Raises ValueError for a picture that is not of this world, or a prompt without metadata that can be met."""
        codes_BN = torch.stack([read_codes(levels) for levels in images])
        return {name: scores.tolist() for name, scores in score_codes(prompts, codes_BN, self.rewards).items()}


def read_codes(levels_3HW: Tensor) -> Tensor:
    """The codes int64 [N] that the decoder draws as these levels, uint8 [3, 128, 128].

    Raises ValueError if there are none; a masked token has no code.
    """
    if levels_3HW.shape != (3, SIDE, SIDE):
        raise ValueError(f"no picture of the micro world: {' x '.join(map(str, levels_3HW.shape))} levels")
    patches = levels_3HW.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).flatten(0, 1)
    found = [known.get(digest) for known, digest in zip(_codes_of_patches(), _digests(patches), strict=True)]
    if None in found:
        row, column = divmod(found.index(None), world.GRID)
        raise ValueError(f"no picture of the micro world: the token in row {row}, column {column} is none of its codes")
    codes_N = torch.tensor(found)
    if not torch.equal(to_levels(decode_codes(codes_N[None]))[0], levels_3HW):
        raise ValueError("no picture of the micro world: what is behind its objects is another scene than around them")
    return codes_N


@cache
def _codes_of_patches() -> list[dict[bytes, int]]:
    """Of each place a map from the digest of a patch that can be drawn there to its code."""
    known: list[dict[bytes, int]] = [{} for _ in range(world.NUM_IMAGE_TOKENS)]
    for scene_light in range(len(PALETTES)):
        for codes, levels in zip(known, to_levels(all_patches(scene_light)), strict=True):
            codes |= zip(_digests(levels), range(world.CODEBOOK_SIZE), strict=True)
    return known


def _digests(levels: Tensor) -> list[bytes]:
    """A digest of 16 bytes of each patch uint8 [3, Q, Q]."""
    return [blake2b(patch, digest_size=16).digest() for patch in levels.contiguous().numpy()]
