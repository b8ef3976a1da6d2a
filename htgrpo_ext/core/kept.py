"""Keys and values that are kept from one denoising step for the next ones.

R rows that are kept; U rows of a call, H heads, S sequence positions, D features of a head, Q positions computed anew,
N image tokens.
"""

from torch import Tensor
from torch.nn import functional as F


class KeysAndValues:
    """Those of every block, [R, H, S, D]. A row that is read has been kept before.

    Positions count from the end of the sequence, because the pads in front that calls leave out differ.
    """

    def __init__(self, rows: int):
        self._rows = rows
        self._blocks: dict[int, list[Tensor]] = {}  # keys, values

    def keep(self, block: int, row_U: Tensor, new: tuple[Tensor, Tensor]) -> None:
        """Write the rows of a block."""
        length = new[0].shape[2]
        if block not in self._blocks:
            self._blocks[block] = [t.new_zeros(self._rows, *t.shape[1:]) for t in new]
        if (missing := length - self._blocks[block][0].shape[2]) > 0:
            self._blocks[block] = [F.pad(t, (0, 0, missing, 0)) for t in self._blocks[block]]
        for t, new_UHSD in zip(self._blocks[block], new, strict=True):
            t[row_U, :, t.shape[2] - length :] = new_UHSD

    def completed(
        self, block: int, row_U: Tensor, new: tuple[Tensor, Tensor], place_UQ: Tensor, length: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [U, H, S, D] of whole rows: those kept, and the new ones [U, H, Q, D] in their places."""
        whole = []
        for t, new_UHQD in zip(self._blocks[block], new, strict=True):
            t_UHSD = t[:, :, t.shape[2] - length :].index_select(0, row_U)
            whole.append(t_UHSD.scatter_(2, place_UQ[:, None, :, None].expand_as(new_UHQD), new_UHQD))
        return whole[0], whole[1]


class Kept:
    """What a call does with keys and values that are kept. No tuple, so that wrappers of a model hand it on as it is.

    kept         where they are
    row_U        int64, the rows of the call in there
    computed_UN  bool, on the CPU: the image tokens that are computed, and see the kept ones; among them are all that
                 have changed and all that are wanted. None: all is computed, and is kept
    """

    def __init__(self, kept: KeysAndValues, row_U: Tensor, computed_UN: Tensor | None):
        self.kept, self.row_U, self.computed_UN = kept, row_U, computed_UN

    def of_rows(self, part: slice) -> "Kept":
        computed_UN = self.computed_UN
        return Kept(self.kept, self.row_U[part], None if computed_UN is None else computed_UN[part])

    def of_block(
        self, block: int, place_UQ: Tensor | None, length: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [U, H, S, D] that a block's queries see.

        place_UQ      the positions that were computed, of `length` = S; None: all
        keys, values  theirs [U, H, Q, D]
        """
        if place_UQ is not None:
            return self.kept.completed(block, self.row_U, (keys, values), place_UQ, length)
        self.kept.keep(block, self.row_U, (keys, values))
        return keys, values
