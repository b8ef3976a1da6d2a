"""Hierarchical credit: structure tokens get more of the reward than refinement tokens (paper Eq. 10, 20)."""

import torch
from torch import Tensor


def credit_weight(rank_BN: Tensor, structure_count: int, structure: float, refinement: float) -> Tensor:
    """The credit weight of every token (Eq. 10, 20): `structure` where rank <= N_s, else `refinement`.

    rank_BN          integer [B, N], 1..N
    structure_count  N_s
    Returns          float32 [B, N]
    """
    weight_BN = torch.full(rank_BN.shape, refinement, dtype=torch.float32, device=rank_BN.device)
    return weight_BN.masked_fill(rank_BN <= structure_count, structure)
