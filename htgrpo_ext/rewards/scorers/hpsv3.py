"""HPSv3, a preference model on Qwen2-VL-7B, through its authors' package (github.com/MizzenAI/HPSv3, PyPI `hpsv3`).

The package predicts a mean and a deviation; the score is the mean, unscaled. Its README gives averages per generator
from -0.24 (Stable Diffusion 2) to 10.55 (Kolors). The package needs an environment of its own, which
launch/rewards/hpsv3.sh makes.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.pixels import levels_image

BASE = "Qwen/Qwen2-VL-7B-Instruct"


class Scorer:
    """HPSv3 on one device.

    checkpoint  HPSv3.safetensors; None: the published one, from Hugging Face
    base        the Qwen2-VL that it was trained from, a folder or a name on Hugging Face: configuration, processor and
                weights, which the package loads before it replaces them by the checkpoint's
    dtype       of all but the head, which is float32. On a CPU it must be float32: the package casts on CUDA only
    attention   auto: flash attention where flash_attn is installed and dtype is bfloat16, else PyTorch's
    """

    rewards = ("hpsv3",)

    def __init__(
        self,
        device: torch.device,
        checkpoint: str | None = None,
        base: str = BASE,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        attention: Literal["auto", "sdpa"] = "auto",
    ):
        if dtype not in ("bfloat16", "float32") or attention not in ("auto", "sdpa"):
            raise UserError(
                f"reward hpsv3: dtype is bfloat16 or float32, attention auto or sdpa; not {dtype}, {attention}"
            )
        if device.type == "cpu" and dtype != "float32":
            raise UserError("reward hpsv3: on a CPU the package works in float32 only (--set dtype=float32)")
        if checkpoint is not None and not Path(checkpoint).is_file():
            raise UserError(f"reward hpsv3: no file {checkpoint} (option `checkpoint`)")
        try:
            import hpsv3
        except ImportError as error:
            raise UserError(f"reward hpsv3: {error}; launch/rewards/hpsv3.sh makes the environment it needs") from None
        config = yaml.safe_load((Path(hpsv3.__file__).parent / "config" / "HPSv3_7B.yaml").read_text())
        config |= {
            "model_name_or_path": base,
            "torch_dtype": dtype,
            "bf16": dtype == "bfloat16",
            "disable_flash_attn2": attention == "sdpa" or dtype == "float32",  # flash attention has no float32
            "use_cpu": True,  # else the package's trainer takes the first GPU; the model itself goes to `device`
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "hpsv3.yaml"
            file.write_text(yaml.safe_dump(config))
            try:
                self._model = hpsv3.HPSv3RewardInferencer(str(file), checkpoint, device)  # pyright: ignore[reportAttributeAccessIssue] (takes this file for it)
            # SafetensorError: a truncated file. RuntimeError: load_state_dict, which lists every tensor.
            except (OSError, SafetensorError, RuntimeError) as error:
                line = one_line(error, 300)
                name = checkpoint or "HPSv3.safetensors"
                raise UserError(f"reward hpsv3: cannot load {name} into {base}: {line}") from None
        self._reserved = list(self._model.processor.tokenizer.get_added_vocab())

    @torch.inference_mode()
    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """See `Scorer` in scorers/__init__.py. Raises ValueError for a prompt with one of the model's own tokens."""
        texts = [prompt["prompt"] for prompt in prompts]
        for text in texts:
            # The package finds scores by token: one token more would give this image's score to another image.
            if any(token in text for token in self._reserved):
                raise ValueError(f"a prompt holds one of the model's own tokens: {text[:80]!r}")
        score_B2 = self._model.reward([levels_image(image) for image in images], texts)
        return {"hpsv3": score_B2[:, 0].tolist()}
