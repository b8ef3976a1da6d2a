"""What a transformer needs not compute.

In the last block: positions whose logits nobody wants. Every position is read as key and value; but behind the last
attention one that is not wanted has no effect. And in all blocks what is kept from an earlier step (`core/kept.py`).

U rows, S sequence positions, Q of them asked for in each row, D features, M wanted positions.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from htgrpo_ext.core.kept import Kept

# Queries are rounded up to a multiple. Attention's kernels treat the queries of an incomplete block by other
# arithmetic; in blocks of this size float32 results on the CPU are those of the whole sequence, bit for bit.
BLOCK = 8


Keep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # a block's new keys and values -> those that queries see


class Wanted(NamedTuple):
    """Where logits are wanted."""

    place_UQ: Tensor  # int64, Q positions of each row: the wanted ones in order, then any
    slot_M: Tensor  # int64, the places of the M wanted positions among the U*Q, row-major


def wanted_positions(positions_US: Tensor, device: torch.device) -> Wanted | None:
    """The wanted positions on `device`; None if they are more than half of a row, or gradients are enabled.

    With gradients, sums over positions would be rounded in another order. `positions_US` is bool; on the CPU it is
    read without waiting for the device.
    """
    if torch.is_grad_enabled():
        return None
    count_U, length = positions_US.sum(-1), positions_US.shape[1]
    most = -(-int(count_U.max()) // BLOCK) * BLOCK
    if most > length // 2:
        return None
    place_UQ = positions_US.byte().argsort(dim=-1, descending=True, stable=True)[:, :most]
    first_UQ = torch.arange(most, device=count_U.device) < count_U[:, None]
    slot_M = first_UQ.flatten().nonzero()[:, 0]
    return Wanted(place_UQ.to(device, non_blocking=True), slot_M.to(device, non_blocking=True))


def at_places(t: Tensor, place_UQ: Tensor) -> Tensor:
    """The features [U, Q, D] of [U, S, D] at Q positions of each row."""
    return t.gather(1, place_UQ[..., None].expand(-1, -1, t.shape[-1]))


class Computed(NamedTuple):
    """Where a sequence is computed when keys and values of the rest are kept."""

    place_UQ: Tensor  # int64, Q positions of each row: those to compute in order, then the first of them again
    wanted_UQ: Tensor  # bool, where the flags of wanted positions are, on it


def computed_positions(computed_US: Tensor, wanted_US: Tensor, device: torch.device) -> Computed:
    """The positions to compute on `device`; both flags bool, on the CPU, and at least one position in each row."""
    count_U1 = computed_US.sum(-1, keepdim=True)
    most = -(-int(count_U1.max()) // BLOCK) * BLOCK
    place_UQ = computed_US.byte().argsort(dim=-1, descending=True, stable=True)[:, :most]
    own_UQ = torch.arange(place_UQ.shape[1]) < count_U1
    place_UQ = torch.where(own_UQ, place_UQ, place_UQ[:, :1])
    return Computed(place_UQ.to(device, non_blocking=True), wanted_US.gather(1, place_UQ) & own_UQ)


def keepers(kept: Kept | None, place_UQ: Tensor | None, length: int, blocks: int) -> list[Keep | None]:
    """What each block does with its keys and values; None: nothing."""
    if kept is None:
        return [None] * blocks
    return [partial(kept.of_block, block, place_UQ, length) for block in range(blocks)]
