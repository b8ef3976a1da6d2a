"""What a method is: its settings, checked by pydantic, and the K updates it makes of a rollout batch."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from htgrpo_ext.section import Section

if TYPE_CHECKING:
    from htgrpo_ext.core.randomness import Draws
    from htgrpo_ext.core.views import RolloutBatch, Update

Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Method(Section):
    """A run's `method` section; a subclass is one method: its settings and its `updates`.

    Settings load no torch, so a subclass imports tensor code inside `updates`.
    """

    name: str
    structure_ratio: Share = 0.3  # rho (Eq. 7); methods without stages only split their logged entropies by it

    average: ClassVar[Literal["rollout", "token"]] = "rollout"  # how the objective averages over the support
    old_from_first_update: ClassVar[bool] = True  # at update 0 theta is theta_old: its forward gives pi_old as well

    def updates(self, batch: "RolloutBatch", draws: "Draws", count: int) -> "list[Update]":
        """The K = `count` updates of a rollout batch, all drawn from `draws`."""
        raise NotImplementedError

    def update_index(self, update: int, micro_batch: int, micro_batches: int, count: int) -> int:
        """Which of the K updates a micro-batch trains in optimizer step `update`: that step's own."""
        return update

    def problems(self, count: int, num_tokens: int) -> list[str]:
        """What is wrong with these settings for K = `count` updates of images of N tokens, one line each."""
        return []
