"""Random remasking: MaskGRPO, UniGRPO and D1. The context is the image with a random part masked again (Eq. 15).

B rollouts, N image tokens, L prompt tokens, K updates.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from htgrpo_ext.methods.base import Method, Share

if TYPE_CHECKING:
    from torch import Tensor

    from htgrpo_ext.core.randomness import Draws
    from htgrpo_ext.core.views import RolloutBatch, Update


class MaskRatio(Method):
    """What both forms of MaskGRPO share: update k masks at ratio m_k = min(c + (1 - c)(k + 1)/K, 0.999)."""

    min_mask_rate: Share = 0.6  # c, MaskGRPO's own training script

    average: ClassVar[Literal["rollout", "token"]] = "token"

    def masks(self, batch: "RolloutBatch", draws: "Draws", count: int) -> "list[Tensor]":
        """The masked tokens of every update, bool [B, N]."""
        from htgrpo_ext.core.contexts import remask

        c = self.min_mask_rate
        return [remask(batch, draws, k, min(c + (1 - c) * (k + 1) / count, 0.999)) for k in range(count)]


class MaskGRPOFixed(MaskRatio):
    """MaskGRPO as its paper describes it: the targets of an update are the tokens that it masks."""

    name: Literal["maskgrpo-fixed"]

    def updates(self, batch: "RolloutBatch", draws: "Draws", count: int) -> "list[Update]":
        from htgrpo_ext.core.contexts import remasked_updates

        return remasked_updates(self.masks(batch, draws, count), batch)


class MaskGRPO(MaskRatio):
    """MaskGRPO as its code was published, with the two faults that change a run.

    1. The loss masks of all K updates are broadcast over each update's log-probabilities. So every token counts as
       often as any update masked it, also where it is visible in this update's context.
    2. The index of the update follows the micro-step: with A micro-batches in an optimizer step, micro-batch a of
       step k trains update (k A + a) mod K.
    It also computes pi_old of all K updates in a pass of its own.
    """

    name: Literal["maskgrpo"]

    old_from_first_update: ClassVar[bool] = False

    def updates(self, batch: "RolloutBatch", draws: "Draws", count: int) -> "list[Update]":
        from htgrpo_ext.core.views import Update, View, add_up

        masked, weight_BN = self.masks(batch, draws, count), batch.plain_weight()
        times_masked_BN = add_up(masked_BN.long() for masked_BN in masked)
        return [Update((View(~masked_BN, times_masked_BN),), weight_BN, "global") for masked_BN in masked]

    def update_index(self, update: int, micro_batch: int, micro_batches: int, count: int) -> int:
        return (update * micro_batches + micro_batch) % count


class UniGRPO(Method):
    """UniGRPO (MMaDA): a random start ratio per rollout, then even steps of 1/K over the updates.

    Its paper's printed rule ends fully masked and contradicts the example there (100, 300, 500, 700, 900 of 1,000).
    We follow the example: ratio_k = r + k/K, r uniform in [0, 1/K).
    """

    name: Literal["unigrpo"]

    def updates(self, batch: "RolloutBatch", draws: "Draws", count: int) -> "list[Update]":
        from htgrpo_ext.core.contexts import remask, remasked_updates

        start_B1 = draws.uniform("start ratio", shape=(1,)).to(batch.rank_BN.device) / count
        return remasked_updates([remask(batch, draws, k, start_B1 + k / count) for k in range(count)], batch)


class D1(Method):
    """diffu-GRPO (d1): the image fully masked, and each word of the prompt masked with probability p in each update."""

    name: Literal["d1"]
    prompt_mask_rate: Annotated[float, Field(ge=0, lt=1)] = 0.15  # 0: the whole prompt is seen

    def updates(self, batch: "RolloutBatch", draws: "Draws", count: int) -> "list[Update]":
        from htgrpo_ext.core.views import Update, View

        everything_BN, weight_BN, updates = batch.rank_BN > 0, batch.plain_weight(), []
        for k in range(count):
            noise_BL = draws.uniform("prompt mask", k, shape=batch.words_BL.shape[1:]).to(batch.words_BL.device)
            hidden_BL = batch.words_BL & (noise_BL < self.prompt_mask_rate)
            updates.append(Update((View(~everything_BN, everything_BN, hidden_BL),), weight_BN, "global"))
        return updates
