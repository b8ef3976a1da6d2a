"""Generation order: which tokens were unmasked first (paper section 2.1, Eq. 1).

B rollouts, N image tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # settings name the order of ties with this module, and must not load torch
    from torch import Tensor

Ties = Literal["raster", "shuffled"]


def tie_places(num_tokens: int, ties: Ties) -> Tensor:
    """The place of each token among tokens of one unmask step: a permutation of 0..N-1, int64 [N].

    raster    row by row. Of the step that the cut-off between structure and refinement falls into, the upper rows are
              structure, in every rollout: with N = 1,024, T = 12 and rho = 0.3 a token of the first row is structure in
              36 % of emerge's rollouts, one of the last row in 27 %
    shuffled  one fixed permutation, the same for all rollouts, runs and seeds: no place on the canvas is favoured
    """
    import torch

    from htgrpo_ext.core.randomness import derived_generator

    if ties == "raster":
        return torch.arange(num_tokens)
    noise_N = torch.rand(num_tokens, generator=derived_generator("order of ties", num_tokens))
    return noise_N.argsort(stable=True)


def generation_rank(unmask_step_BN: Tensor, ties: Ties) -> Tensor:
    """Generation-order rank of every token, 1 first (r of section 2.1 and Eq. 17).

    unmask_step_BN  integer [B, N], the sampler step at which each token appeared
    ties            the order of tokens of one step; see `tie_places`
    Returns         int16 [B, N], a permutation of 1..N per row
    """
    import torch

    num_tokens = unmask_step_BN.shape[-1]
    place_N = tie_places(num_tokens, ties).to(unmask_step_BN.device)
    order_BN = (unmask_step_BN.long() * num_tokens + place_N).argsort(dim=-1)
    ranks_BN = torch.arange(1, num_tokens + 1, dtype=torch.int16, device=order_BN.device).expand_as(order_BN)
    return torch.empty_like(ranks_BN).scatter(-1, order_BN, ranks_BN)
