"""From views to log-probabilities, with one forward for all rows that look the same to the model.

Under HT-GRPO's fully masked context the prompt is the model's whole input: all G rollouts of a prompt and all K
updates read their log-probabilities from one row. Other methods share the rows that happen to be equal.

B rollouts, N image tokens, V codebook, L prompt tokens; R rows (views x B), A those with a target, U distinct ones
(b of them in a batch), T targets, M wanted positions.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from htgrpo_ext.core.batches import BatchSize
from htgrpo_ext.core.kept import Kept
from htgrpo_ext.core.log_probs import chosen_log_probs
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.core.views import Prompts, Update, add_up

ImageLogits = Callable[..., Tensor]  # prompts [U], codes [U, N], wanted [U, N] -> [M, V]; some also take `kept`


def distinct_rows(prompts: Prompts, codes_RN: Tensor) -> tuple[Prompts, Tensor, Tensor]:
    """The distinct rows among R pairs of prompt and canvas.

    Returns prompts [U], codes [U, N], and int64 [R], the distinct row that each pair is.
    """
    length = prompts.ids_BL.shape[1]
    key_RK = torch.cat([*(t.long() for t in prompts), codes_RN], dim=1)
    key_UK, row_R = torch.unique(key_RK, dim=0, return_inverse=True)
    ids, attention, words, codes = key_UK.split([length, length, length, codes_RN.shape[1]], dim=1)
    return Prompts(ids, attention.bool(), words.bool()), codes, row_R


def hide_words(prompts: Prompts, hidden_BL: Tensor | None, mask_id: int) -> Prompts:
    """The prompts with some tokens masked (D1)."""
    return prompts if hidden_BL is None else prompts._replace(ids_BL=prompts.ids_BL.masked_fill(hidden_BL, mask_id))


def packed_slots(wanted_UN: Tensor) -> Tensor:
    """The place of each wanted position among all of them, row-major. int64 [U, N], meaningless elsewhere"""
    return (wanted_UN.flatten().cumsum(0) - 1).view_as(wanted_UN)


class SharedForward:
    """Calls the model once per distinct row, in batches, and counts the rows by kind (rollout, old, reference, new).

    image_logits  the model; see `Backbone.image_logits`
    mask_id       the model's id for a hidden prompt token
    batch_size    rows per call; see `BatchSize`
    """

    def __init__(self, image_logits: ImageLogits, mask_id: int, batch_size: int | Literal["auto"]):
        self.image_logits = image_logits
        self.mask_id = mask_id
        self.batch_size = BatchSize(batch_size)
        self.rows: Counter[str] = Counter()
        self._first_NV: Tensor | None = None

    def start_cycle(self) -> None:
        """Count from zero, and forget what the policy answered: it has changed since."""
        self.rows.clear()
        self._first_NV = None

    def logits(
        self, prompts: Prompts, codes_UN: Tensor, wanted_UN: Tensor, kind: str, kept: Kept | None = None
    ) -> Tensor:
        """Logits [M, V] at the wanted positions of U rows, row-major, in the type that the model gives.

        kept  what to do with keys and values that are kept from one call to another
        """

        def of_batch(part: slice) -> Tensor:
            keywords = {} if kept is None else {"kept": kept.of_rows(part)}
            return self.image_logits(prompts.rows(part), codes_UN[part], wanted_UN[part], **keywords)

        self.rows[kind] += len(codes_UN)
        parts = self.batch_size.batches(len(codes_UN), codes_UN.device, of_batch)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def first_logits(self, prompt: Prompts, num_tokens: int) -> Tensor:
        """Logits [N, V] of the fully masked image under the unconditional row: one forward per policy."""
        if self._first_NV is None:
            self._first_NV = self.blank_logits(prompt, num_tokens)
        return self._first_NV

    def blank_logits(self, prompt: Prompts, num_tokens: int, kept: Kept | None = None) -> Tensor:
        """Logits [N, V] of the fully masked image under one prompt."""
        codes_1N = torch.full((1, num_tokens), MASK, device=prompt.ids_BL.device)
        return self.logits(prompt, codes_1N, torch.ones(1, num_tokens, dtype=torch.bool), "rollout", kept)

    def log_probs(self, prompts: Prompts, codes_BN: Tensor, updates: Sequence[Update], kind: str) -> list[Tensor]:
        """Log-probabilities of every update's targets, each in its own view: the terms of the ratio (Eq. 3, 13).

        With nothing visible this is the prompt-conditioned estimator (Eq. 9, 24).

        prompts   B rows, a prompt's rollouts side by side
        codes_BN  int64 [B, N], the rollouts' final codes
        kind      what the rows are counted as
        Returns   float32 [B, N] per update, 0 where a token is no target. Gradients flow when they are enabled
        """
        views = [view for update in updates for view in update.views]
        target_RN = torch.cat([view.target_BN > 0 for view in views])
        context_RN = torch.cat([torch.where(view.visible_BN, codes_BN, MASK) for view in views])
        prompts_R = [hide_words(prompts, view.prompt_masked_BL, self.mask_id) for view in views]
        asked_R = target_RN.any(-1)  # a row without a target is not computed
        asked_R[0] |= ~asked_R.any()  # without any target one row is computed all the same, for its graph
        asked_prompts = Prompts(*(torch.cat(parts)[asked_R] for parts in zip(*prompts_R, strict=True)))
        rows, codes_UN, row_A = distinct_rows(asked_prompts, context_RN[asked_R])
        wanted_UN = torch.zeros_like(codes_UN).index_add(0, row_A, target_RN[asked_R].long()) > 0

        # One entry per (view, rollout, target token), row-major; sorted by the row that answers it.
        entry_A, place_T = target_RN[asked_R].nonzero(as_tuple=True)
        row_T = row_A[entry_A]
        code_T = codes_BN.repeat(len(views), 1)[target_RN]
        by_row = row_T.argsort(stable=True)

        def of_batch(part: slice) -> Tensor:
            logits_MV = self.image_logits(rows.rows(part), codes_UN[part], wanted_UN[part])
            here = by_row[(row_T[by_row] >= part.start) & (row_T[by_row] < part.stop)]
            slot = packed_slots(wanted_UN[part])[row_T[here] - part.start, place_T[here]]
            return chosen_log_probs(logits_MV, slot, code_T[here])

        self.rows[kind] += len(codes_UN)
        parts = self.batch_size.batches(len(codes_UN), codes_UN.device, of_batch)
        logp_T = torch.cat(parts)[by_row.argsort()]
        logp_RN = torch.zeros(target_RN.shape, device=codes_BN.device).masked_scatter(target_RN, logp_T)
        per_view = logp_RN.split(len(codes_BN))
        ends = torch.tensor([len(update.views) for update in updates]).cumsum(0).tolist()
        return [add_up(per_view[end - len(u.views) : end]) for u, end in zip(updates, ends, strict=True)]
