"""What the processes of a run tell each other."""

from typing import cast

from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor


def gathered(value: Tensor) -> Tensor:
    """The values of all processes, one after another along the first dimension. All processes must call it together."""
    return cast(Tensor, gather(value.to(PartialState().device)))
