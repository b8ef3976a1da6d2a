"""DeQA-Score, image quality from 1 to 5 (github.com/zhiyuanyou/DeQA-Score): the code that its checkpoint brings.

It does not read the prompt. launch/rewards/deqa.sh makes the environment that the code needs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.pixels import levels_image

MODEL = "zhiyuanyou/DeQA-Score-Mix3"


class Scorer:
    """DeQA-Score on one device.

    model     a folder, or a name on Hugging Face. Its Python files are executed
    revision  a commit of that name; None: the newest
    dtype     float16 | bfloat16 | float32
    """

    rewards = ("deqa",)

    def __init__(self, device: torch.device, model: str = MODEL, revision: str | None = None, dtype: str = "float16"):
        if dtype not in ("bfloat16", "float16", "float32"):
            raise UserError(f"reward deqa: unknown dtype `{dtype}` (one of float16, bfloat16, float32)")
        try:
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise UserError(f"reward deqa: {error}; launch/rewards/deqa.sh makes the environment it needs") from None
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                model,
                revision=revision or "main",
                trust_remote_code=True,
                attn_implementation="eager",
                torch_dtype=getattr(torch, dtype),
            ).to(device)
        except (OSError, ValueError, RuntimeError, ImportError, AttributeError) as error:
            raise UserError(f"reward deqa: cannot load {model}: {one_line(error, 300)}") from None
        if not callable(getattr(self._model, "score", None)):
            raise UserError(f"reward deqa: {model} is not DeQA-Score: its code has no `score`")

    @torch.inference_mode()
    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """See `Scorer` in scorers/__init__.py."""
        return {"deqa": self._model.score([levels_image(image) for image in images]).float().tolist()}
