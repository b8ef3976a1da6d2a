"""The words world's tokenizer: each 4 x 4 patch of a grey picture becomes the nearest of a codebook's patches.

B pictures of H x W pixels, N tokens, V codes, P patches, D = 16 pixels of a patch.
"""

import torch
from torch import Tensor

from htgrpo_ext.words.world import COLUMNS, PATCH, ROWS

AT_ONCE = 2**15  # patches whose distances are held together


def to_patches(pictures_BHW: Tensor) -> Tensor:
    """The patches of pictures, float32 [B, N, D], row-major."""
    return pictures_BHW.float().unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(1, 2).flatten(2)


def to_pictures(patches_BND: Tensor) -> Tensor:
    """The pictures [B, H, W] that have these patches; undoes `to_patches`."""
    return patches_BND.view(-1, ROWS, COLUMNS, PATCH, PATCH).transpose(2, 3).reshape(-1, ROWS * PATCH, COLUMNS * PATCH)


def nearest(patches_PD: Tensor, codebook_VD: Tensor) -> Tensor:
    """Code of the nearest patch of the codebook by squared distance, the first of equals, int64 [P]."""
    half_V = codebook_VD.square().sum(1) / 2  # the patch's own square is the same for all codes
    return torch.cat([(half_V - part @ codebook_VD.T).argmin(1) for part in patches_PD.split(AT_ONCE)])


def encode(pictures_BHW: Tensor, codebook_VD: Tensor) -> Tensor:
    """Codes int64 [B, N] of grey pictures, levels 0 to 255."""
    patches_BND = to_patches(pictures_BHW)
    return nearest(patches_BND.flatten(0, 1), codebook_VD).view(patches_BND.shape[:2])


def decode(codes_BN: Tensor, codebook_VD: Tensor) -> Tensor:
    """The grey pictures float32 [B, H, W] of codes, levels 0 to 255."""
    return to_pictures(codebook_VD[codes_BN])


def fit(patches_PD: Tensor, codes: int, iterations: int, generator: torch.Generator) -> Tensor:
    """A codebook float32 [codes, D] of whole grey levels, by k-means from random patches.

    A code that no patch is nearest to starts again at a random patch.
    """

    def some(count: int) -> Tensor:
        return patches_PD[torch.randperm(len(patches_PD), generator=generator)[:count]]

    codebook_VD = some(codes)
    for _ in range(iterations):
        code_P = nearest(patches_PD, codebook_VD)
        count_V = torch.bincount(code_P, minlength=codes)
        sum_VD = torch.zeros_like(codebook_VD).index_add_(0, code_P, patches_PD)
        codebook_VD = torch.where(count_V[:, None] > 0, sum_VD / count_V[:, None].clamp(min=1), some(codes))
    return codebook_VD.round()
