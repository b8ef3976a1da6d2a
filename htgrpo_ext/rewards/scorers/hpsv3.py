"""HPSv3, a preference model on Qwen2-VL-7B, through its authors' package (github.com/MizzenAI/HPSv3, PyPI `hpsv3`).

The score is the mean of the package's (mean, deviation), unscaled. Its README's averages per generator run from -0.24
(Stable Diffusion 2) to 10.55 (Kolors).
The package cannot be imported beside what this project trains with: launch/rewards/hpsv3.sh makes its environment.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from htgrpo_ext.errors import UserError
from htgrpo_ext.pixels import levels_image

BASE = "Qwen/Qwen2-VL-7B-Instruct"


class Scorer:
    """HPSv3 on one device.

    checkpoint  HPSv3.safetensors; the published one is fetched from Hugging Face if none is given
    base        the Qwen2-VL that it was trained from, a folder or a name on Hugging Face: configuration, processor, and
                weights as well, which the package loads before it puts the checkpoint's in their place
    dtype       of all but the head, which is float32. On a CPU it must be float32: the package casts on CUDA only
    attention   auto is flash attention where flash_attn is installed and dtype allows it; the package knows no third
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
            "disable_flash_attn2": attention == "sdpa" or dtype == "float32",  # which flash attention does not do
            "use_cpu": True,  # of the trainer's arguments, which would take the first GPU; the model goes to `device`
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "hpsv3.yaml"
            file.write_text(yaml.safe_dump(config))
            try:
                self._model = hpsv3.HPSv3RewardInferencer(str(file), checkpoint, device)
            # SafetensorError: a file cut short. RuntimeError: load_state_dict, which lists every tensor.
            except (OSError, SafetensorError, RuntimeError) as error:
                line = " ".join(str(error).split())[:300]
                name = checkpoint or "HPSv3.safetensors"
                raise UserError(f"reward hpsv3: cannot load {name} into {base}: {line}") from None
        self._reserved = list(self._model.processor.tokenizer.get_added_vocab())

    @torch.inference_mode()
    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """See scorers/__init__.py. Raises ValueError for a prompt with a token that marks images or the score."""
        texts = [prompt["prompt"] for prompt in prompts]
        for text in texts:
            # The package reads scores off by token: one more would give this image's score to another, unseen.
            if any(token in text for token in self._reserved):
                raise ValueError(f"a prompt holds one of the model's own tokens: {text[:80]!r}")
        score_B2 = self._model.reward([levels_image(image) for image in images], texts)
        return {"hpsv3": score_B2[:, 0].tolist()}
