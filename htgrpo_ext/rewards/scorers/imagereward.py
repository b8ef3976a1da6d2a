"""ImageReward, a preference model on BLIP, through its authors' package (github.com/THUDM/ImageReward, `image-reward`).

The score is the package's own, one image at a time: about standard normal over its training data, roughly -2 to 2. The
model reads the first 35 tokens of a prompt. launch/rewards/imagereward.sh makes the environment that the package needs.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.pixels import levels_image


class Scorer:
    """ImageReward on one device, in float32.

    checkpoint  ImageReward.pt; None: the published one, from Hugging Face
    config      BLIP's med_config.json, likewise

    BLIP's tokenizer, bert-base-uncased, always comes from Hugging Face or its cache. Raises UserError.
    """

    rewards = ("imagereward",)

    def __init__(self, device: torch.device, checkpoint: str | None = None, config: str | None = None):
        for option, file in (("checkpoint", checkpoint), ("config", config)):
            if file is not None and not Path(file).is_file():
                raise UserError(f"reward imagereward: no file {file} (option `{option}`)")
        try:
            import ImageReward  # pyright: ignore[reportMissingImports] (only in its own environment)
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision beside another build of torch
            raise UserError(
                f"reward imagereward: {error}; launch/rewards/imagereward.sh makes the environment it needs"
            ) from None
        name = checkpoint or "ImageReward-v1.0"
        try:
            self.model = ImageReward.load(name, device, med_config=config)
            # The package accepts a file that lacks weights, and leaves those random.
            held = torch.load(checkpoint, mmap=True, weights_only=True).keys() if checkpoint else None
        except Exception as error:  # torch.load raises many kinds, a failed download others
            said = one_line(error, 300)
            raise UserError(f"reward imagereward: cannot load {name}: {said}") from None
        used = [
            key for key, _ in self.model.named_parameters() if "_proj." not in key
        ]  # two of BLIP's are for training
        if missing := [] if held is None else [key for key in used if key not in held]:
            raise UserError(f"reward imagereward: {name}: {len(missing)} weights missing: {missing[0]}, ..")

    @torch.inference_mode()
    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """See `Scorer` in scorers/__init__.py."""
        pairs = zip(prompts, images, strict=True)
        return {"imagereward": [self.model.score(prompt["prompt"], levels_image(image)) for prompt, image in pairs]}
