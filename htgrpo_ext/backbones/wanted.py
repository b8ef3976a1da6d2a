"""What a transformer's last block needs not compute: positions whose logits nobody wants.

Every position is read as key and value; but behind the last attention a position that is not wanted has no effect.

U rows, S sequence positions, Q of them asked for in each row, D features, M wanted positions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Queries are rounded up to a multiple. Attention's kernels treat the queries of an incomplete block by other
# arithmetic; in blocks of this size float32 results on the CPU are those of the whole sequence, bit for bit.
BLOCK = 8


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
