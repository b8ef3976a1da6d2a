"""What every backbone offers to the loops.

Outside a backbone, image codes are canonical: int64 [B, N], 0..V-1, MASK where masked. Token ids, separators and
offsets stay inside the backbone.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from htgrpo_ext.core.views import Prompts


class Denoiser(Protocol):
    """What rollouts and scoring use; `htgrpo plan` has a stand-in for it."""

    num_image_tokens: int  # N
    codebook_size: int  # V
    mask_id: int  # the id that stands for a hidden word of a prompt

    def unconditional(self) -> Prompts:
        """The one row that stands for no prompt in classifier-free guidance."""
        ...

    def image_logits(self, prompts: Prompts, codes_UN: Tensor, wanted_UN: Tensor) -> Tensor:
        """Codebook logits float [M, V] at the M wanted positions, row-major, for U rows of prompt and canvas.

        codes_UN   int64 [U, N], MASK where masked
        wanted_UN  bool [U, N], True at M positions. In rollouts it and the prompts' `attention_BL` are on the CPU,
                   where they can be read without waiting for the device; elsewhere they are where the model is

        A model whose section says `keeps_keys` also takes `kept`, which says what to do with keys and values.
        """
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside this context `image_logits` answers as the frozen reference policy."""
        ...


class Backbone(Denoiser, Protocol):
    grid: tuple[int, int]  # rows and columns of the image tokens
    model: nn.Module  # what is trained: full weights, or adapters on frozen ones

    def encode_prompts(self, texts: Sequence[str]) -> Prompts:
        """Rows of the model's prompt layout, padded to one length. Raises UserError for a text that does not fit."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is trained into a folder: full weights as a checkpoint of their own, or adapters."""
        ...

    def prepare_decoder(self) -> None:
        """Load what `decode` needs, if that takes long. Raises UserError when it is missing."""
        ...

    def decode(self, codes_BN: Tensor) -> Tensor:
        """Pixels float32 [B, 3, H, W] in [-1, 1] of int64 [B, N]."""
        ...

    def compile_blocks(self, mode: str) -> None:
        """From now on compute the model's blocks by `torch.compile`, in this mode of it. In place: names stay."""
        ...

    def route_through(self, wrapped: nn.Module) -> None:
        """Send the policy's forwards through accelerate's wrapper of `model`."""
        ...
