"""HT-GRPO (paper section 3): staged, annealed supports; a fully masked context; credit by generation order.

B rollouts, N image tokens, K updates.
"""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from htgrpo_ext.core.stages import STAGES, Annealing, Stage, sampling_rate, schedule, stage_tokens, structure_count
from htgrpo_ext.methods.base import Method, Rate
from htgrpo_ext.section import MOST_UPDATES, Positive, Section

if TYPE_CHECKING:
    from torch import Tensor

    from htgrpo_ext.core.randomness import Draws
    from htgrpo_ext.core.views import RolloutBatch, Update, View


StageUpdates = Annotated[int, Field(ge=0, le=MOST_UPDATES)]


class StageRates(Section):
    """Annealing of one stage's sampling rate gamma (Eq. 29)."""

    gamma_max: Rate = 1.0
    gamma_min: Rate = 0.5
    mode: Annealing = "down"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.gamma_min > self.gamma_max:
            raise ValueError(f"gamma_min {self.gamma_min} is above gamma_max {self.gamma_max}")
        return self


class HTGRPO(Method):
    """HT-GRPO. `context: reveal-structure` is ablation A5; `masked` is the method."""

    name: Literal["htgrpo"]
    budget: dict[Stage, StageUpdates] = Field(default={"global": 2, "structure": 4, "refinement": 2})
    rates: dict[Stage, StageRates] = Field(default_factory=lambda: {stage: StageRates() for stage in STAGES})
    structure_weight: Positive = 1.2
    refinement_weight: Positive = 0.8
    context: Literal["masked", "reveal-structure"] = "masked"

    def updates(self, batch: "RolloutBatch", draws: "Draws", count: int) -> "list[Update]":
        """Update k: a random part of the active stage's tokens (Eq. 18), in the masked context, by credit weight."""
        from htgrpo_ext.core.credit import credit_weight
        from htgrpo_ext.core.support import support_set
        from htgrpo_ext.core.views import Update

        rank_BN, structure_count = batch.rank_BN, batch.structure_count
        weight_BN = credit_weight(rank_BN, structure_count, self.structure_weight, self.refinement_weight)
        updates = []
        for k, (stage, rate) in enumerate(self.sampling_rates()):
            noise_BN = draws.uniform("support", k, shape=rank_BN.shape[1:]).to(rank_BN.device)
            support_BN = support_set(stage_tokens(rank_BN, structure_count, stage), rate, noise_BN)
            updates.append(Update(self.views(rank_BN <= structure_count, support_BN), weight_BN, stage))
        return updates

    def sampling_rates(self) -> list[tuple[Stage, float]]:
        """Stage and sampling rate gamma of every update (Eq. 6, 29)."""
        rates = []
        for update in schedule(self.budget):
            of_stage = self.rates.get(update.stage, StageRates())
            ends = of_stage.gamma_min, of_stage.gamma_max, of_stage.mode
            rates.append((update.stage, sampling_rate(update.index, update.length, *ends)))
        return rates

    def views(self, structure_BN: "Tensor", support_BN: "Tensor") -> "tuple[View, ...]":
        """The context of the support: every image token masked (Eq. 9, 19, 24).

        In the ablation, structure tokens are visible where refinement tokens are scored (Eq. 25).
        """
        from htgrpo_ext.core.views import View

        nothing_BN = support_BN & False
        if self.context == "masked":
            return (View(nothing_BN, support_BN),)
        return View(nothing_BN, support_BN & structure_BN), View(structure_BN, support_BN & ~structure_BN)

    def problems(self, count: int, num_tokens: int) -> list[str]:
        budget = [self.budget.get(stage, 0) for stage in STAGES]
        found = []
        if sum(budget) != count:
            found.append(
                f"budget {'+'.join(map(str, budget))} = {sum(budget)}, but updates_per_rollout is {count} "
                "(method.budget, loop.updates_per_rollout)"
            )
        if not 0 < structure_count(num_tokens, self.structure_ratio) < num_tokens:
            found.append(
                f"structure_ratio {self.structure_ratio} leaves a stage without any of the {num_tokens} tokens "
                "(method.structure_ratio)"
            )
        return found
