"""The three answers of a method about an update: which tokens are visible, which are targets, how much each weighs.

B rollouts, N image tokens, L prompt tokens, K updates.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Prompts(NamedTuple):
    """Prompts as the model reads them, one row each."""

    ids_BL: Tensor  # int64
    attention_BL: Tensor  # bool, False on padding
    words_BL: Tensor  # bool, the user's own words, neither padding nor markers

    def rows(self, index: slice | Tensor) -> "Prompts":
        """The chosen rows."""
        return Prompts(*(t[index] for t in self))

    def repeat(self, times: int) -> "Prompts":
        """Each row `times` times, copies side by side: B = P*G rows from P."""
        return Prompts(*(t.repeat_interleave(times, dim=0) for t in self))


@dataclass(frozen=True)
class View:
    """A context of each rollout's tokens (C in Eq. 2, 4, 12), and the tokens scored in it.

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
    """Update k of a rollout batch: its views, weights and stage. A token is a target in at most one view.

    weight_BN  float32, multiplies the advantage, never the KL
    """

    views: tuple[View, ...]
    weight_BN: Tensor
    stage: str

    @property
    def target_BN(self) -> Tensor:
        """int64 [B, N], how often each token counts in the update: the support set S[g,k] (Eq. 2, 12)."""
        return add_up(view.target_BN.long() for view in self.views)

    def rows(self, rows: slice) -> "Update":
        """The same update for some of the rollouts."""

        def cut(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[rows]

        views = tuple(View(v.visible_BN[rows], v.target_BN[rows], cut(v.prompt_masked_BL)) for v in self.views)
        return Update(views, self.weight_BN[rows], self.stage)


def add_up(parts: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor, in their order."""
    total, *others = parts
    for part in others:
        total = total + part
    return total


def even_share(count: int, index: int, shares: int) -> range:
    """Share `index` of the numbers 0..count-1, divided into `shares` neighbouring parts as evenly as possible."""
    return range(index * count // shares, (index + 1) * count // shares)


def same_contexts(a: Update, b: Update) -> bool:
    """Whether two updates show the model the same rows. One forward then serves both."""

    def same(x: Tensor | None, y: Tensor | None) -> bool:
        return x is y or (x is not None and y is not None and torch.equal(x, y))

    return len(a.views) == len(b.views) and all(
        same(v.visible_BN, w.visible_BN) and same(v.prompt_masked_BL, w.prompt_masked_BL)
        for v, w in zip(a.views, b.views, strict=True)
    )


class RolloutBatch(NamedTuple):
    """What a method knows of a rollout batch when it plans the K updates."""

    unmask_step_BN: Tensor  # int16
    rank_BN: Tensor  # int16, 1..N
    words_BL: Tensor  # bool, prompt tokens that are words
    structure_count: int  # N_s, tokens that count as structure

    def plain_weight(self) -> Tensor:
        """Credit weight 1 for every token. float32 [B, N]"""
        return torch.ones(self.rank_BN.shape, device=self.rank_BN.device)
