"""UniPercept, a model of how pictures look, through its authors' package (github.com/thunderbolt215/UniPercept,
PyPI `unipercept-reward`): aesthetics `iaa`, quality `iqa`, structure and texture `ista`.

The package reads pictures from files, one at a time; it does not read the prompt. launch/rewards/unipercept.sh makes
the environment that it needs.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.pixels import levels_image

REWARDS = ("iaa", "iqa", "ista")


class Scorer:
    """UniPercept on one device.

    model  a folder; None: the published one, from Hugging Face
    dtype  bfloat16 | float16 | float32
    """

    rewards = REWARDS

    def __init__(self, device: torch.device, model: str | None = None, dtype: str = "bfloat16"):
        if dtype not in ("bfloat16", "float16", "float32"):
            raise UserError(f"reward unipercept: unknown dtype `{dtype}` (one of bfloat16, float16, float32)")
        if model is not None and not Path(model).is_dir():
            raise UserError(f"reward unipercept: no folder {model} (option `model`)")
        try:
            from unipercept_reward import UniPerceptRewardInferencer  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                f"reward unipercept: {error}; launch/rewards/unipercept.sh makes the environment it needs"
            ) from None
        try:
            self._model = UniPerceptRewardInferencer(model, str(device), getattr(torch, dtype))
        except (OSError, ValueError, RuntimeError) as error:
            said = one_line(error, 300)
            raise UserError(f"reward unipercept: cannot load {model or 'the published model'}: {said}") from None

    @torch.inference_mode()
    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """See `Scorer` in scorers/__init__.py. The package prints an error and gives nothing; that is NaN here."""
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder) / f"{number}.png") for number in range(len(images))]
            for file, image in zip(files, images, strict=True):
                levels_image(image).save(file, compress_level=1)
            found = self._model.reward(files)
        return {name: [float("nan") if each is None else float(each[name]) for each in found] for name in REWARDS}
