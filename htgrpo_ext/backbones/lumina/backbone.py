"""Lumina-DiMOO as a backbone: a templated prompt, then image rows that each end in a newline; any height and width.

    [pad].. <system>instruction</system><user>text</user> | <answer><image>row newline row newline ..</image></answer>

Layout and ids: github.com/Alpha-VLLM/Lumina-DiMOO, config.py and inference/inference_t2i.py. Its code runs prompts one
at a time. Here prompts of different length share a batch, padded in front. Pads are hidden, and positions count from
each prompt's first token, so that a row's logits are those of the prompt alone.

The unconditional row is the template around <uncondition>, with its own length and the same canvas.

L prompt tokens, N = H*W image tokens, H rows of W.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from htgrpo_ext.backbones.decoding import load_vq_model, vq_pixels
from htgrpo_ext.backbones.llada.backbone import ImageBlock, LladaBackbone, left_padded
from htgrpo_ext.backbones.lumina import PIXELS
from htgrpo_ext.backbones.tokens import prompt_ids, token_ids
from htgrpo_ext.core.views import Prompts
from htgrpo_ext.errors import UserError

NEWLINE = 126084  # in MMaDA the same id begins an image
MASK_ID = 126336
PAD = 126339  # of Lumina-DiMOO's training; here pads are hidden, so any id would do
IMAGE_START, IMAGE_END = 126349, 126350
UNCONDITION = 126351
ANSWER_START, ANSWER_END = 126354, 126355
IMAGE_OFFSET = 126356  # id of code 0

BEFORE = "<system>Generate an image according to the text prompt.</system><user>"
AFTER = "</user>"
NOBODY = "<uncondition>"
MARKS = (*re.findall(r"<\S+?>", BEFORE + AFTER), NOBODY)


def image_block(height: int, width: int) -> ImageBlock:
    """The answer with one image of `height` x `width` pixels, multiples of 16: H*(W+1) + 4 ids."""
    H, W = height // PIXELS, width // PIXELS
    rows = [*[MASK_ID] * W, NEWLINE] * H
    frame_I = torch.tensor([ANSWER_START, IMAGE_START, *rows, IMAGE_END, ANSWER_END])
    code_N = torch.arange(H * W)
    return ImageBlock(frame_I, 2 + code_N + code_N // W, MASK_ID, IMAGE_OFFSET)


class LuminaBackbone(LladaBackbone):
    """See `Backbone`."""

    mask_id = MASK_ID
    reserved = {
        "newline": NEWLINE,
        "image start": IMAGE_START,
        "image end": IMAGE_END,
        "<answer>": ANSWER_START,
        "</answer>": ANSWER_END,
    }
    image_offset = IMAGE_OFFSET
    # Lumina-DiMOO's training makes as many vocabulary rows as there are tokens, and its sampler takes the last 8,192
    # for the codes: the published tokenizer may contain them too.
    lengths = (IMAGE_OFFSET, IMAGE_OFFSET + LladaBackbone.codebook_size)
    codes_are_last = True

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        reference: nn.Module | None = None,
        height: int = 512,
        width: int = 512,
        prompt_length: int = 192,
        vq_checkpoint: Path | None = None,
    ):
        """`vq_checkpoint` is the folder that contains `vqvae/`."""
        layout: dict[str, Any] = dict(prompt_length=prompt_length, vq_checkpoint=vq_checkpoint)
        super().__init__(model, tokenizer, reference, block=image_block(height, width), **layout)
        self.grid = (height // PIXELS, width // PIXELS)

    @classmethod
    def load(cls, checkpoint: Path, *args: Any, vq_checkpoint: Path | None = None, **options: Any) -> Self:
        """See `LladaBackbone.load`. By default the VQ model is in the checkpoint's own folder."""
        return super().load(checkpoint, *args, vq_checkpoint=vq_checkpoint or checkpoint, **options)

    @classmethod
    def named_tokens(cls, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        return {"<|mdm_mask|>": MASK_ID, NOBODY: UNCONDITION}

    @classmethod
    def encode(cls, tokenizer: PreTrainedTokenizerFast, length: int, texts: Sequence[str]) -> Prompts:
        """Rows of `length` ids; `image_logits` leaves out the pads that all rows have in common.

        Raises UserError for a prompt that is too long: Lumina-DiMOO has no rule for cutting one.
        """
        before, after = map(len, token_ids(tokenizer, (BEFORE, AFTER)))
        rows = prompt_ids(tokenizer, texts, BEFORE, AFTER, MARKS)
        for text, ids in zip(texts, rows, strict=True):
            if len(ids) > length:
                raise UserError(
                    f"prompt {text[:40]!r}: {len(ids)} ids with the template, "
                    f"but there is room for {length} (model.prompt_length)"
                )
        return left_padded(rows, [range(before, len(ids) - after) for ids in rows], length, PAD)

    def unconditional(self) -> Prompts:
        rows = token_ids(self.tokenizer, [BEFORE + NOBODY + AFTER])
        return self.on_device(left_padded(rows, [range(0)], self.prompt_length, PAD))

    def position_ids(self, attention_US: Tensor, cut: int) -> Tensor:
        """int64 [U, S]: a position counts from its own prompt's first token."""
        return (attention_US.cumsum(-1) - 1).clamp(min=0)

    @cached_property
    def decoder(self) -> Any:
        """The VQ model, loaded at first use. Raises UserError if it, or diffusers, is missing."""
        if find_spec("diffusers") is None:
            raise UserError("pixels are decoded by diffusers: pip install -c constraints.txt -e '.[lumina]'")
        folder = self.vq_checkpoint
        if folder is None or not (folder / "vqvae" / "config.json").is_file():
            raise UserError(f"{folder}: no vqvae/ there, which decodes pixels (model.vq_checkpoint)")
        return load_vq_model(folder / "vqvae", PIXELS, self.codebook_size).to(self.device)

    def decode(self, codes_BN: Tensor) -> Tensor:
        return vq_pixels(self.decoder, codes_BN, self.grid)
