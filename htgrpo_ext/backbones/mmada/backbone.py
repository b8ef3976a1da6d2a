"""MMaDA as a backbone: a left-padded prompt, then an image block of 32 x 32 codes, 512 x 512 pixels.

    [iPAD].. t2i bos text eos | soi, 1024 codes, eoi

The prompt is the raw text, without a template. Layout and ids: github.com/Gen-Verse/MMaDA,
training/prompting_utils.py. Its MAGVITv2 gives the pixels; the class is imported from the `upstream` checkout.

`attention: masked` hides the pads, as MMaDA does since June 2025. With `as-maskgrpo` every position sees them, as in
MaskGRPO's older copy. Rollout and scoring use the same function, so they always agree.

L prompt tokens, N image tokens.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from htgrpo_ext.backbones.checkpoints import load_by_library
from htgrpo_ext.backbones.decoding import chunks
from htgrpo_ext.backbones.llada.backbone import ImageBlock, LladaBackbone, left_padded
from htgrpo_ext.backbones.tokens import prompt_ids
from htgrpo_ext.core.views import Prompts
from htgrpo_ext.errors import UserError

BOS, EOS = 126080, 126081
IMAGE_START, IMAGE_END = 126084, 126085  # <|soi|>, <|eoi|>
TEXT_TO_IMAGE, PAD = 126088, 126093  # <|t2i|>, [iPAD]
MASK_ID = 126336
IMAGE_OFFSET = 126349  # id of code 0: the length of the tokenizer, not llm_vocab_size (126464)
NUM_IMAGE_TOKENS = 1024

UPSTREAM = Path(__file__).parents[3] / "upstream"


def image_block() -> ImageBlock:
    """soi, codes, eoi: no separators between rows."""
    frame_I = torch.tensor([IMAGE_START, *[MASK_ID] * NUM_IMAGE_TOKENS, IMAGE_END])
    return ImageBlock(frame_I, torch.arange(1, NUM_IMAGE_TOKENS + 1), MASK_ID, IMAGE_OFFSET)


class MMaDABackbone(LladaBackbone):
    """See `Backbone`."""

    mask_id = MASK_ID
    reserved = {"<|soi|>": IMAGE_START, "<|eoi|>": IMAGE_END, "<|t2i|>": TEXT_TO_IMAGE, "[iPAD]": PAD}
    image_offset = IMAGE_OFFSET
    lengths = (IMAGE_OFFSET,)
    grid: tuple[int, int] = (32, 32)

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        reference: nn.Module | None = None,
        prompt_length: int = 257,
        masks_padding: bool = True,
        vq_checkpoint: Path | None = None,
    ):
        layout: dict[str, Any] = dict(prompt_length=prompt_length, vq_checkpoint=vq_checkpoint)
        super().__init__(model, tokenizer, reference, block=image_block(), **layout)
        self.masks_padding = masks_padding

    @classmethod
    def named_tokens(cls, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        """The mask, and the tokens that the tokenizer begins and ends a text with."""
        named = {"<|mdm_mask|>": MASK_ID}
        return named | {tokenizer.bos_token or "bos_token": BOS, tokenizer.eos_token or "eos_token": EOS}

    @classmethod
    def encode(cls, tokenizer: PreTrainedTokenizerFast, length: int, texts: Sequence[str]) -> Prompts:
        """Rows of `length` ids; a longer text is cut and still ends with eos, as in MMaDA."""
        rows, words = [], []
        for ids in prompt_ids(tokenizer, texts):
            text = ids[1:] if ids[:1] == [BOS] else ids
            row = [TEXT_TO_IMAGE, BOS, *text, EOS]
            if len(row) > length:
                row = [*row[: length - 1], EOS]
            rows.append(row)
            words.append(range(2, len(row) - 1))
        return left_padded(rows, words, length, PAD)

    def unconditional(self) -> Prompts:
        return self.encode_prompts([""])

    def position_ids(self, attention_US: Tensor, cut: int) -> Tensor:
        """int64 [S]: the place in the full sequence; pads count."""
        return torch.arange(cut, cut + attention_US.shape[1], device=attention_US.device)

    @cached_property
    def decoder(self) -> Any:
        """MAGVITv2, loaded at first use. Raises UserError if upstream or the weights are missing."""
        return load_magvit(self.vq_checkpoint).to(self.device)

    @torch.no_grad()
    def decode(self, codes_BN: Tensor) -> Tensor:
        """Pixels of codes int64 [B, N]; MAGVITv2's output exceeds [-1, 1] at times and is clamped."""
        return torch.cat([self.decoder.decode_code(codes.to(self.device)) for codes in chunks(codes_BN)]).clamp(-1, 1)


def load_magvit(folder: Path | None) -> Any:
    """MAGVITv2 with the weights of a folder, on the CPU. Raises UserError unless they are all there and finite."""
    if folder is None or not folder.is_dir():
        raise UserError(
            f"{folder}: no MAGVITv2 checkpoint there (model.vq_checkpoint); it is showlab/magvitv2 on Hugging Face"
        )
    options = dict(low_cpu_mem_usage=False, output_loading_info=True)
    with redirect_stdout(sys.stderr):  # the class prints its sizes, and stdout is for results
        return load_by_library(lambda: magvit_class().from_pretrained(folder, **options), folder)


def magvit_class() -> Any:
    """The class MAGVITv2 of the MaskGRPO checkout: upstream/, or the folder that UPSTREAM_CHECKOUT names.

    Raises UserError if there is no checkout, or if the class cannot be imported.
    """
    folder = Path(os.environ.get("UPSTREAM_CHECKOUT", UPSTREAM))
    if not (folder / "models" / "modeling_magvitv2.py").is_file():
        raise UserError(f"{folder}: empty, but the class that decodes pixels is there (run `make upstream`)")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("models").MAGVITv2
    except ImportError as error:
        raise UserError(f"{folder}: MAGVITv2 cannot be imported ({error}); install the extra `upstream`") from None
