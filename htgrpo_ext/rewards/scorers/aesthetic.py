"""LAION's aesthetic predictors: one linear map or several in a row, on the picture's CLIP ViT-L/14 vector."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.pixels import levels_image
from htgrpo_ext.rewards.openclip import OpenClip


class Scorer:
    """head  file with the predictor's weights: sa_0_4_vit_l_14_linear.pth (github.com/LAION-AI/aesthetic-predictor) or
          sac+logos+ava1-l14-linearMSE.pth (github.com/christophschuhmann/improved-aesthetic-predictor)
    model, weights, dtype  as in the scorer `clip`; the published heads belong to OpenAI's ViT-L/14

    Scores are about 1 to 10.
    """

    rewards = ("aesthetic",)

    def __init__(
        self,
        device: torch.device,
        head: str,
        model: str = "ViT-L-14-quickgelu",
        weights: str = "openai",
        dtype: str = "float32",
    ):
        self.layers = [(weight.to(device), bias.to(device)) for weight, bias in read_head(Path(head))]
        self.clip = OpenClip(device, model, weights, dtype)

    @torch.inference_mode()
    def score(self, prompts: Sequence[dict], images: Sequence[Tensor]) -> dict[str, list[float]]:
        """See `Scorer` in scorers/__init__.py."""
        value_BD = self.clip.pictures([levels_image(image) for image in images])
        for weight, bias in self.layers:  # the published predictor has only dropout between them
            value_BD = linear(value_BD, weight, bias)
        return {"aesthetic": value_BD.squeeze(-1).tolist()}


def read_head(file: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each linear map, first to last, float32. Raises UserError."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        names = sorted(
            (name for name in state if name.endswith("weight")),
            key=lambda name: [int(number) for number in re.findall(r"\d+", name)],
        )
        layers = [(state[name].float(), state[name.removesuffix("weight") + "bias"].float()) for name in names]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file (option `head` of the reward aesthetic)") from None
    except Exception as error:  # torch.load raises many kinds
        raise UserError(f"{file}: not a predictor's weights ({one_line(error)})") from None
    fits = all(first[0].shape[0] == second[0].shape[1] for first, second in zip(layers, layers[1:], strict=False))
    if not layers or not fits or layers[-1][0].shape[0] != 1:
        raise UserError(f"{file}: not a predictor's weights (linear maps that end in one number)")
    return layers
