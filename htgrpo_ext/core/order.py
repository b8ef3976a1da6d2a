"""Generation order: which tokens were unmasked first (paper section 2.1, Eq. 1).

B rollouts, N image tokens.
"""

import torch
from torch import Tensor


def generation_rank(unmask_step_BN: Tensor) -> Tensor:
    """Generation-order rank of every token, 1 first (r of section 2.1 and Eq. 17).

    unmask_step_BN  integer [B, N], the sampler step at which each token appeared
    Returns         int16 [B, N], a permutation of 1..N per row; tokens of one step keep raster order
    """
    order_BN = unmask_step_BN.argsort(dim=-1, stable=True)
    ranks_BN = torch.arange(1, order_BN.shape[-1] + 1, dtype=torch.int16, device=order_BN.device).expand_as(order_BN)
    return torch.empty_like(ranks_BN).scatter(-1, order_BN, ranks_BN)
