"""The three questions every method answers about an update: what is visible, what is a target, what it weighs.

B rollouts, N image tokens, L prompt tokens, K updates.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Prompts(NamedTuple):
    """Prompts as the model reads them, one row each."""

    ids_BL: Tensor  # int64
    attention_BL: Tensor  # bool, False on padding
    words_BL: Tensor  # bool, the user's own words: neither padding nor markers

    def rows(self, index: slice | Tensor) -> "Prompts":
        """The chosen rows."""
        return Prompts(*(t[index] for t in self))

    def repeat(self, times: int) -> "Prompts":
        """Each row `times` times, copies side by side: B = P*G rows from P."""
        return Prompts(*(t.repeat_interleave(times, dim=0) for t in self))


@dataclass(frozen=True)
class View:
    """One masked picture of each rollout's image, and the tokens it is asked about.

    visible_BN         bool, tokens shown to the model; the others are masked
    target_BN          bool, tokens whose log-probability is taken in this view; int64 where a token counts
                       several times (MaskGRPO as published)
    prompt_masked_BL   bool, prompt tokens hidden from the model (D1), or None
    """

    visible_BN: Tensor
    target_BN: Tensor
    prompt_masked_BL: Tensor | None = None


@dataclass(frozen=True)
class Update:
    """Update k of a rollout batch: its views (each token a target in at most one), weights and stage.

    weight_BN  float32, multiplies the advantage, never the KL
    """

    views: tuple[View, ...]
    weight_BN: Tensor
    stage: str

    @property
    def target_BN(self) -> Tensor:
        """int64, how often each token counts in the update: the support set S[g,k]."""
        return sum(view.target_BN.long() for view in self.views)

    def rows(self, rows: slice) -> "Update":
        """The same update for some of the rollouts."""

        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[rows]

        views = tuple(View(v.visible_BN[rows], v.target_BN[rows], cut(v.prompt_masked_BL)) for v in self.views)
        return Update(views, self.weight_BN[rows], self.stage)


def same_contexts(a: Update, b: Update) -> bool:
    """Whether two updates show the model the same rows, so that one forward serves both."""

    def same(x: Tensor | None, y: Tensor | None) -> bool:
        return x is y or (x is not None and y is not None and torch.equal(x, y))

    return len(a.views) == len(b.views) and all(
        same(v.visible_BN, w.visible_BN) and same(v.prompt_masked_BL, w.prompt_masked_BL)
        for v, w in zip(a.views, b.views, strict=True)
    )


class RolloutBatch(NamedTuple):
    """What a method may look at when it plans the K updates of a rollout batch."""

    unmask_step_BN: Tensor  # int16
    rank_BN: Tensor  # int16, 1..N
    words_BL: Tensor  # bool, prompt tokens that are words
    structure_count: int  # N_s, tokens that count as structure

    def plain_weight(self) -> Tensor:
        """Credit weight 1 for every token. float32 [B, N]"""
        return torch.ones(self.rank_BN.shape, device=self.rank_BN.device)
