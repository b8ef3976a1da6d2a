"""Rollouts that compute, in most steps, only what has changed. Not exact: see docs/rollouts.md.

Steps come in periods of `refresh`. The first forward of an image in a period is whole, and each block's keys and values
are kept. Its later ones compute two kinds of tokens: those that appear in the step, and those that were drawn since,
whose inputs are no longer masks. They attend to the kept keys and values of all others, the prompt's included, which a
whole forward would give slightly other ones. So do the rows without a prompt.

B images, N image tokens, V codebook; A images of a call, U rows, M wanted positions.
"""

from collections.abc import Container

import torch
from torch import Tensor

from htgrpo_ext.core.drawing import Drawing
from htgrpo_ext.core.estimator import SharedForward, packed_slots
from htgrpo_ext.core.kept import Kept, KeysAndValues
from htgrpo_ext.core.sampler import Drawn
from htgrpo_ext.core.views import Prompts


class ReusingDrawing(Drawing):
    """A `Drawing` for emerge, of a model that takes `kept`. It holds keys and values of up to 2 B + 1 rows.

    num_tokens  N
    refresh     steps of a period

    Rows have places as in `Drawing`: an image's own, and B more without its prompt. The last place, 2 B, is the fully
    masked image without a prompt, which never changes.
    """

    def __init__(
        self,
        forward: SharedForward,
        prompts: Prompts,
        nobody: Prompts,
        guidance: float,
        guided_steps: Container[int] | None,
        num_tokens: int,
        refresh: int,
    ):
        super().__init__(forward, prompts, nobody, guidance, guided_steps)
        self._refresh, self._period, self._blank = refresh, 0, 2 * len(prompts.ids_BL)
        self._kept = KeysAndValues(self._blank + 1)
        self._first_NV: Tensor | None = None
        # Of each place: the period in which it last had a whole row, the place where that is kept (images of a prompt
        # share a row at first), and the tokens drawn since. On the CPU, as all that decides which rows there are.
        self._period_R = torch.full((self._blank,), -1)
        self._source_R = torch.arange(self._blank)
        self._changed_RN = torch.zeros(self._blank, num_tokens, dtype=torch.bool)

    def __call__(self, codes_BN: Tensor, wanted_BN: Tensor, uniform_BN: Tensor, step: int) -> Drawn:
        self._period = step // self._refresh
        return super().__call__(codes_BN, wanted_BN, uniform_BN, step)

    def _draw(
        self, images: Tensor, row_A: Tensor, codes_BN: Tensor, wanted_BN: Tensor, uniform_BN: Tensor
    ) -> tuple[Tensor, Drawn]:
        found = super()._draw(images, row_A, codes_BN, wanted_BN, uniform_BN)
        rows_U = images[row_A.diff(prepend=row_A.new_tensor([-1])) > 0]
        self._note(images, rows_U[row_A], wanted_BN[images])
        if self.guidance:
            own_A = images + len(self._begun_B)
            self._note(own_A, torch.where(self._begun_B[images], own_A, self._blank), wanted_BN[images])
        return found

    def _note(self, place_A: Tensor, source_A: Tensor, drawn_AN: Tensor) -> None:
        """Remember of rows that were just computed where the whole ones are kept, and which tokens were drawn."""
        whole_A = self._period_R[place_A] != self._period
        whole = place_A[whole_A]
        self._period_R[whole], self._source_R[whole], self._changed_RN[whole] = self._period, source_A[whole_A], False
        self._changed_RN[place_A] |= drawn_AN

    def _answers(self, prompts: Prompts, codes_UN: Tensor, wanted_UN: Tensor, place_U: Tensor) -> Tensor:
        known_U = self._period_R[place_U] == self._period
        parts, order = [], []
        for is_known, kind in ((False, "rollout"), (True, "reused")):
            rows = (known_U == is_known).nonzero()[:, 0]
            if not len(rows):
                continue
            place, wanted, there = place_U[rows], wanted_UN[rows], self._there(rows)
            computed = self._changed_RN[place] | wanted if is_known else None
            kept = Kept(self._kept, self._there(self._source_R[place] if is_known else place), computed)
            some = Prompts(*(t[rows.to(t.device, non_blocking=True)] for t in prompts))
            parts.append(self.forward.logits(some, codes_UN[there], wanted, kind, kept))
            order.append(packed_slots(wanted_UN)[rows][wanted])
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts)[self._there(torch.cat(order).argsort())]

    def _first_logits(self, num_tokens: int) -> Tensor:
        if self._first_NV is None:  # once for these images: a row that is kept with the policy would be too large
            kept = Kept(self._kept, self._there(torch.tensor([self._blank])), None)
            self._first_NV = self.forward.blank_logits(self.nobody, num_tokens, kept)
        return self._first_NV
