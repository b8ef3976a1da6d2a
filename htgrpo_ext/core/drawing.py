"""The draws of a rollout: forwards, guidance, and codes drawn inside each batch.

Only wanted positions have logits, and no table of probabilities of all images exists: what a step holds does not grow
with the number of images.

B images, N image tokens, V codebook, L prompt tokens; A images asked for, U rows, M wanted positions, m of them drawn
at once.
"""

from collections.abc import Container

import torch
from torch import Tensor

from htgrpo_ext.core.estimator import SharedForward, packed_slots
from htgrpo_ext.core.sampler import Drawn, draw_codes, guided
from htgrpo_ext.core.views import Prompts

DRAWN_AT_ONCE = 2**21  # probabilities of a table [m, V]: 8 MB in float32, and `draw_codes` makes a few of them
CPU_POSITIONS = 1536  # of a forward on a CPU: what its cache holds. Measured on the micro model; more are slower


class Drawing:
    """The `Draw` of one rollout batch; its sampler calls it once a step.

    forward       the model
    prompts       B rows
    nobody        the unconditional row
    guidance      0: the unconditional row is not computed
    guided_steps  those that have guidance, None: all. Without it a step draws from the conditional law
    """

    def __init__(
        self,
        forward: SharedForward,
        prompts: Prompts,
        nobody: Prompts,
        guidance: float,
        guided_steps: Container[int] | None = None,
    ):
        self.forward, self.device, self._wanted_guidance = forward, prompts.ids_BL.device, (guidance, guided_steps)
        self.guidance = guidance  # of the step
        # What decides which rows there are is kept on the CPU, so that no step waits for the device.
        self.prompts, self.nobody = (p._replace(attention_BL=p.attention_BL.cpu()) for p in (prompts, nobody))
        attention_BL = self.prompts.attention_BL.long()
        key_BK = torch.cat([attention_BL.sum(1, keepdim=True), prompts.ids_BL.cpu(), attention_BL], dim=1)
        self._prompt_B = torch.unique(key_BK, dim=0, return_inverse=True)[1]  # equal prompts, the shortest first
        self._begun_B = torch.zeros(len(key_BK), dtype=torch.bool)  # whether a token of the image was ever wanted

    def __call__(self, codes_BN: Tensor, wanted_BN: Tensor, uniform_BN: Tensor, step: int) -> Drawn:
        guidance, guided_steps = self._wanted_guidance
        self.guidance = guidance if guided_steps is None or step in guided_steps else 0.0
        wanted_BN = wanted_BN.cpu()
        asked_B = wanted_BN.any(-1)
        # Sorted by prompt, and so by its length: pads that all rows of a batch have are not computed. Images of a
        # prompt of which nothing is drawn yet are neighbours, and show the model one row.
        key_B = 2 * self._prompt_B + self._begun_B
        images = asked_B.nonzero()[:, 0]
        images = images[key_B[images].argsort(stable=True)]
        alone_A = self._begun_B[images] | (key_B[images].diff(prepend=key_B.new_tensor([-1])) != 0)
        row_A = alone_A.cumsum(0) - 1

        def of_rows(part: slice) -> tuple[Tensor, Drawn]:
            mine = (row_A >= part.start) & (row_A < part.stop)
            return self._draw(images[mine], row_A[mine] - part.start, codes_BN, wanted_BN, uniform_BN)

        found = self.forward.batch_size.batches(int(alone_A.sum()), self.device, of_rows, self._most(codes_BN))
        self._begun_B |= asked_B
        slots, drawn = zip(*found, strict=True)
        order = self._there(torch.cat(slots).argsort())
        return Drawn(*(torch.cat(values)[order] for values in zip(*drawn, strict=True)))

    def _draw(
        self, images: Tensor, row_A: Tensor, codes_BN: Tensor, wanted_BN: Tensor, uniform_BN: Tensor
    ) -> tuple[Tensor, Drawn]:
        """Draw the wanted positions of A images that show the model U rows.

        images   int64 [A], on the CPU, as `wanted_BN`
        row_A    int64, the row of each, in 0..U-1, sorted
        Returns  the place of each drawn position among all M of the step, int64 [m], and what was drawn there
        """
        wanted_AN = wanted_BN[images]
        rows_U = images[row_A.diff(prepend=row_A.new_tensor([-1])) > 0]
        wanted_UN = torch.zeros(len(rows_U), wanted_AN.shape[1]).index_add_(0, row_A, wanted_AN.float()) > 0
        image_m, place_m = wanted_AN.nonzero(as_tuple=True)
        row_m = row_A[image_m]
        slot_m = packed_slots(wanted_UN)[row_m, place_m]
        logits_MV, other_MV, other_UN = self._logits(rows_U, codes_BN[self._there(rows_U)], wanted_UN)
        index_4m = torch.stack([slot_m, other_UN[row_m, place_m], images[image_m], place_m])
        drawn = []
        for slot, other, image, place in self._there(index_4m).split(max(1, DRAWN_AT_ONCE // logits_MV.shape[1]), 1):
            chosen_mV = logits_MV[slot].float()
            if self.guidance:
                chosen_mV = guided(chosen_mV, other_MV[other].float(), self.guidance)
            drawn.append(draw_codes(chosen_mV, uniform_BN[image, place]))
        return packed_slots(wanted_BN)[images[image_m], place_m], Drawn(*map(torch.cat, zip(*drawn, strict=True)))

    def _logits(self, rows_U: Tensor, codes_UN: Tensor, wanted_UN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the images `rows_U`, with their prompts and without.

        Returns  [M, V]; the same without the prompts; and int64 [U, N], the place of each wanted position in these.
                 Without guidance the last two say nothing
        """
        begun_U, slot_UN = self._begun_B[rows_U], packed_slots(wanted_UN)
        prompts = Prompts(*(t[rows_U.to(t.device, non_blocking=True)] for t in self.prompts))
        if not self.guidance:
            logits_MV = self._answers(prompts, codes_UN, wanted_UN, rows_U)
            return logits_MV, logits_MV, slot_UN
        # One batch: the rows, and below them those without a prompt. A fully masked one is the same for all images.
        own_U = begun_U.nonzero()[:, 0]
        nobody = self.nobody.repeat(len(own_U))
        both = Prompts(*map(torch.cat, zip(prompts, nobody, strict=True)))
        codes_UN = torch.cat([codes_UN, codes_UN[self._there(own_U)]])
        places = torch.cat([rows_U, rows_U[own_U] + len(self._begun_B)])
        both_MV = self._answers(both, codes_UN, torch.cat([wanted_UN, wanted_UN[own_U]]), places)
        logits_MV, other_MV = both_MV.split([int(wanted_UN.sum()), int(wanted_UN[own_U].sum())])
        if begun_U.all():
            return logits_MV, other_MV, slot_UN
        first_NV = self._first_logits(wanted_UN.shape[1])
        other_UN = torch.arange(wanted_UN.shape[1]).repeat(len(rows_U), 1)  # in first_NV
        other_UN[own_U] = packed_slots(wanted_UN[own_U]) + len(first_NV)
        return logits_MV, torch.cat([first_NV, other_MV]) if len(own_U) else first_NV, other_UN

    def _answers(self, prompts: Prompts, codes_UN: Tensor, wanted_UN: Tensor, place_U: Tensor) -> Tensor:
        """Logits [M, V] of rows; their places are those of the images, and B more for an image without its prompt."""
        return self.forward.logits(prompts, codes_UN, wanted_UN, "rollout")

    def _first_logits(self, num_tokens: int) -> Tensor:
        """Logits [N, V] of the fully masked image without a prompt."""
        return self.forward.first_logits(self.nobody, num_tokens)

    def _most(self, codes_BN: Tensor) -> int:
        """Images of a batch, for speed."""
        passes = 2 if self.guidance else 1
        positions = self.prompts.ids_BL.shape[1] + codes_BN.shape[1]
        return max(1, CPU_POSITIONS // (passes * positions)) if self.device.type == "cpu" else len(codes_BN)

    def _there(self, index: Tensor) -> Tensor:
        """An index on the model's device."""
        return index.to(self.device, non_blocking=True)
