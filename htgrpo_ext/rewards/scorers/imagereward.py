"""ImageReward, a preference model on BLIP, through its authors' package (github.com/THUDM/ImageReward, `image-reward`).

The package's own number, one image at a time: about standard normal over what it was made for, roughly -2 to 2. It
reads the first 35 tokens of a prompt. launch/rewards/imagereward.sh makes the environment it needs.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from htgrpo_ext.errors import UserError
from htgrpo_ext.pixels import levels_image


class Scorer:
    """ImageReward on one device, in float32.

    checkpoint  ImageReward.pt; the published one is fetched from Hugging Face if none is given
    config      BLIP's med_config.json, likewise

    BLIP's tokenizer, bert-base-uncased, comes from Hugging Face in any case, or its cache. Raises UserError.
    """

    rewards = ("imagereward",)

    def __init__(self, device: torch.device, checkpoint: str | None = None, config: str | None = None):
        for option, file in (("checkpoint", checkpoint), ("config", config)):
            if file is not None and not Path(file).is_file():
                raise UserError(f"reward imagereward: no file {file} (option `{option}`)")
        try:
            import ImageReward
        except (ImportError, RuntimeError) as error:  # torchvision raises the latter beside another build of torch
            raise UserError(
                f"reward imagereward: {error}; launch/rewards/imagereward.sh makes the environment it needs"
            ) from None
        name = checkpoint or "ImageReward-v1.0"
        try:
            self.model = ImageReward.load(name, device, med_config=config)
            # The package takes whatever is in a file and leaves the rest random.
            held = torch.load(checkpoint, mmap=True, weights_only=True).keys() if checkpoint else None
        except Exception as error:  # torch.load's own are of many kinds, a failed download's too
            said = " ".join(str(error).split())[:300]
            raise UserError(f"reward imagereward: cannot load {name}: {said}") from None
        used = [key for key, _ in self.model.named_parameters() if "_proj." not in key]  # BLIP's two are for training
        if missing := [] if held is None else [key for key in used if key not in held]:
            raise UserError(f"reward imagereward: {name}: {len(missing)} weights missing: {missing[0]}, ..")

    @torch.inference_mode()
    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """See scorers/__init__.py."""
        pairs = zip(prompts, images, strict=True)
        return {"imagereward": [self.model.score(prompt["prompt"], levels_image(image)) for prompt, image in pairs]}
