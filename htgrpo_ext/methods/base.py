"""The base class of methods: settings, checked by pydantic, and the K updates of a rollout batch."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from htgrpo_ext.core.order import Ties
from htgrpo_ext.section import Section

if TYPE_CHECKING:
    from htgrpo_ext.core.randomness import Draws
    from htgrpo_ext.core.views import RolloutBatch, Update

Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Method(Section):
    """A run's `method` section. Each subclass is one method: its settings and its `updates`.

    Settings must not load torch, so a subclass imports tensor code inside `updates`.
    """

    name: Any  # a Literal in each subclass
    structure_ratio: Share = 0.3  # rho (Eq. 7); methods without stages only split their logged entropies by it
    # The order of tokens of one unmask step. A file without it is of a run from before there was a choice: raster.
    ties: Ties = "raster"

    average: ClassVar[Literal["rollout", "token"]] = "rollout"  # how the objective averages over the support
    exact_rollouts: ClassVar[bool] = (
        False  # its ratio is taken in the sampler's own contexts: they must be drawn exactly
    )
    old_from_first_update: ClassVar[bool] = True  # at update 0 theta = theta_old, so its forward gives pi_old as well

    def updates(self, batch: "RolloutBatch", draws: "Draws", count: int) -> "list[Update]":
        """The K = `count` updates of a rollout batch. All randomness comes from `draws`."""
        raise NotImplementedError

    def update_index(self, update: int, micro_batch: int, micro_batches: int, count: int) -> int:
        """Which of the K updates micro-batch `micro_batch` of `micro_batches` trains in optimizer step `update`."""
        return update

    def problems(self, count: int, num_tokens: int) -> list[str]:
        """What is wrong with these settings for K = `count` updates on images of N tokens, one line each."""
        return []
