"""CLIP through open_clip: unit vectors of pictures and of texts.

B pictures or texts, D dimensions of their common space.
"""

import warnings
from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from htgrpo_ext.errors import UserError, one_line

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class OpenClip:
    """A model on one device; `model`, `weights` and `dtype` as in the scorer `clip`. Raises UserError."""

    def __init__(self, device: torch.device, model: str, weights: str | None, dtype: str):
        try:
            import open_clip  # pyright: ignore[reportMissingImports] (optional, make setup-clip)
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision beside another build of torch
            raise UserError(
                f"open_clip cannot be imported ({one_line(error)}); make setup-clip, or pip install "
                "'htgrpo-ext[clip]' in a reward's own environment"
            ) from None
        if dtype not in PRECISIONS:
            raise UserError(f"clip: unknown dtype `{dtype}` (one of {', '.join(PRECISIONS)})")
        self.device = device
        self.dtype = getattr(torch, dtype)
        try:
            with warnings.catch_warnings():
                # open_clip only warns, but the scores would be wrong: OpenAI's weights need the -quickgelu names.
                warnings.filterwarnings("error", message="QuickGELU mismatch")
                self.model, self.preprocess = open_clip.create_model_from_pretrained(
                    model, weights, precision=PRECISIONS[dtype], device=device
                )
            self.tokenizer = open_clip.get_tokenizer(model)
        except UserWarning:
            raise UserError(
                f"clip: weights `{weights}` were trained with another activation than model `{model}` has "
                "(OpenAI's need a model whose name ends in -quickgelu)"
            ) from None
        except Exception as error:  # open_clip raises many kinds, for a failed download too
            raise UserError(f"clip: {model} with weights {weights}: {one_line(error, 300)}") from None
        self.model.eval().requires_grad_(False)

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image]) -> Tensor:
        """Unit vectors float32 [B, D]. open_clip's own transform resizes and crops the pictures."""
        pixels = torch.stack([self.preprocess(picture) for picture in pictures])
        return normalize(self.model.encode_image(pixels.to(self.device, self.dtype)).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors float32 [B, D]. The model reads the start of a text that `is_cut`."""
        return normalize(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)).float(), dim=-1)

    def is_cut(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has more tokens than the model reads (77 in CLIP, two of them marks).

        Tokenised with room for one token more, only such a text has a word's token in the last place but one, where
        shorter ones have one of the marks or padding that an empty text has, too.
        """
        most = self.tokenizer.context_length
        token_BN = self.tokenizer([*texts, ""], context_length=most + 1)
        return (~torch.isin(token_BN[:-1, most - 1], token_BN[-1])).tolist()
