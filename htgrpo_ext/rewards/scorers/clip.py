"""CLIP: the cosine of a picture and its prompt, unscaled (about 0.15 to 0.35 for ViT-L/14)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from htgrpo_ext.pixels import levels_image
from htgrpo_ext.rewards.openclip import OpenClip


class Scorer:
    """model    a name of open_clip (`htgrpo serve-reward clip --set model=ViT-H-14 --set weights=laion2b_s32b_b79k`),
             hf-hub:ORG/NAME, or local-dir:/path with open_clip_config.json. OpenAI's weights need the -quickgelu names
    weights  a tag of open_clip, or a checkpoint file; ignored for hf-hub and local-dir
    dtype    float32 | bfloat16 | float16, of the model; the cosine is float32
    """

    rewards = ("clip",)

    def __init__(
        self,
        device: torch.device,
        model: str = "ViT-L-14-quickgelu",
        weights: str = "openai",
        dtype: str = "float32",
    ):
        self.clip = OpenClip(device, model, weights, dtype)
        self.cut_prompts = 0

    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """See `Scorer` in scorers/__init__.py."""
        texts = list(dict.fromkeys(prompt["prompt"] for prompt in prompts))  # rollouts of a prompt share its vector
        row_B = [texts.index(prompt["prompt"]) for prompt in prompts]
        text_BD, is_cut = self.clip.texts(texts)[row_B], self.clip.is_cut(texts)
        self.cut_prompts += sum(is_cut[row] for row in row_B)
        image_BD = self.clip.pictures([levels_image(image) for image in images])
        return {"clip": (image_BD * text_BD).sum(-1).tolist()}
