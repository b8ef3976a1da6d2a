"""What the patches on MaskGRPO's trainer call: each hands its value back unchanged unless the trainer is ours.

"Ours" is a trainer with an `extension` (see train/upstream.py). MaskGRPO's own trainer has none, so that on a patched
tree it computes what it does on a pristine one, bit for bit. Plain Python: these names are checked without torch.
"""

from typing import Any


def image_tokens(trainer: Any, count: int) -> int:
    """N, image tokens of a rollout, where MaskGRPO writes 1024."""
    extension = getattr(trainer, "extension", None)
    return count if extension is None else extension.num_image_tokens


def update_index(trainer: Any, index: int) -> int:
    """Which of the K updates a micro-step trains: by the optimizer step, where MaskGRPO counts micro-steps."""
    extension = getattr(trainer, "extension", None)
    return index if extension is None else extension.index


def loss_mask(trainer: Any, index: int, mask: Any) -> Any:
    """The update's own support [B, N], where MaskGRPO has the masks of all K updates [K, B, N]."""
    extension = getattr(trainer, "extension", None)
    return mask if extension is None else extension.loss_mask(index)


def credit(trainer: Any, index: int, gain: Any) -> Any:
    """The surrogate [1, B, N] times the update's weights [B, N]; the KL term never comes here."""
    extension = getattr(trainer, "extension", None)
    return gain if extension is None else gain * extension.weight(index)
