"""What MMaDA's and Lumina-DiMOO's backbones share: the place of image codes in the sequence, loading, forwards.

A sequence is prompt | image block. The block's ids are the same for every image except at the N slots of the codes.

U rows, L prompt tokens, I block tokens, S = L + I, N image tokens, V codebook, M wanted positions.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from htgrpo_ext.backbones.adapters import copy_rest
from htgrpo_ext.backbones.llada.transformer import LladaConfig, LladaModel, load_llada, read_config
from htgrpo_ext.backbones.policy import Policy, prepare_policy
from htgrpo_ext.backbones.tokens import check_tokenizer, load_tokenizer
from htgrpo_ext.core.kept import Kept
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.core.views import Prompts
from htgrpo_ext.errors import UserError


class ImageBlock:
    """The map between canonical codes, MASK where masked, and the block's ids, in both directions.

    frame_I  int64, the ids around the codes; its ids in the slots are never read
    slot_N   int64, the place in the block of each code, in raster order
    """

    def __init__(self, frame_I: Tensor, slot_N: Tensor, mask_id: int, offset: int):
        self.frame_I, self.slot_N, self.mask_id, self.offset = frame_I, slot_N, mask_id, offset

    def ids(self, codes_UN: Tensor) -> Tensor:
        """Block ids int64 [U, I] of codes int64 [U, N]."""
        ids_UI = self.frame_I.to(codes_UN.device, non_blocking=True).repeat(len(codes_UN), 1)
        ids_UI[:, self.slot_N.to(codes_UN.device, non_blocking=True)] = torch.where(
            codes_UN == MASK, self.mask_id, codes_UN + self.offset
        )
        return ids_UI

    def codes(self, ids_UI: Tensor) -> Tensor:
        """Codes int64 [U, N] of block ids int64 [U, I]."""
        ids_UN = ids_UI[:, self.slot_N.to(ids_UI.device)]
        return torch.where(ids_UN == self.mask_id, MASK, ids_UN - self.offset)

    def at_slots(self, flags_UN: Tensor) -> Tensor:
        """Flags bool [U, I]: those of the N codes at their slots, False elsewhere."""
        flags_UI = flags_UN.new_zeros(len(flags_UN), len(self.frame_I))
        flags_UI[:, self.slot_N.to(flags_UN.device)] = flags_UN
        return flags_UI


def left_padded(rows: Sequence[Sequence[int]], words: Sequence[range], length: int, pad_id: int) -> Prompts:
    """Rows of ids, padded in front to `length`; `words` are the places of the user's text in each row."""
    ids_BL = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    attention_BL, words_BL = torch.zeros_like(ids_BL, dtype=torch.bool), torch.zeros_like(ids_BL, dtype=torch.bool)
    for b, (row, own) in enumerate(zip(rows, words, strict=True)):
        start = length - len(row)
        ids_BL[b, start:] = torch.tensor(row)
        attention_BL[b, start:] = True
        words_BL[b, start + own.start : start + own.stop] = True
    return Prompts(ids_BL, attention_BL, words_BL)


class LladaBackbone(Policy):
    """A backbone on LLaDA's transformer; a subclass adds ids, prompts, positions and the decoder of pixels.

    masks_padding  whether pads are hidden from every position
    reserved       see `check_tokenizer`
    image_offset   id of code 0
    lengths        how many tokens the tokenizer may have
    codes_are_last whether the rows of the codebook are the last of the vocabulary
    checkpoint     the folder it was loaded from
    """

    grid: tuple[int, int]
    codebook_size = 8192
    mask_id: int
    masks_padding = True
    reserved: Mapping[str, int]
    image_offset: int
    lengths: Collection[int]
    codes_are_last = False
    checkpoint: Path | None = None

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        reference: nn.Module | None,
        *,
        block: ImageBlock,
        prompt_length: int,
        vq_checkpoint: Path | None,
    ):
        """`prompt_length` ids are in a row of prompts; `vq_checkpoint` is the folder that `decoder` is loaded from."""
        super().__init__(model, reference)
        self.tokenizer, self.block, self.prompt_length = tokenizer, block, prompt_length
        self.vq_checkpoint, self.num_image_tokens = vq_checkpoint, len(block.slot_N)

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        lora: dict[str, Any] | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        activation_checkpointing: bool = False,
        frozen: bool = False,
        **layout: Any,
    ) -> Self:
        """Load a checkpoint folder.

        lora, seed, frozen  see `prepare_policy`
        layout              what the subclass takes besides the model, the tokenizer and the reference

        Raises UserError for a folder that is no such checkpoint, or whose tokenizer has other ids.
        """
        tokenizer = cls.load_tokenizer(checkpoint)
        model = load_llada(checkpoint, dtype)
        model.activation_checkpointing = activation_checkpointing
        policy, reference = prepare_policy(nn.Module.to(model, device), lora, seed, frozen)
        backbone = cls(policy, tokenizer, reference, **layout)
        backbone.checkpoint = checkpoint
        return backbone

    def save(self, folder: Path) -> None:
        """See `Backbone`: full weights with the checkpoint's tokenizer and whatever else it holds."""
        super().save(folder)
        if isinstance(self.model, LladaModel) and self.checkpoint:
            copy_rest(self.checkpoint, folder)

    @classmethod
    def load_tokenizer(cls, checkpoint: Path) -> PreTrainedTokenizerFast:
        """The tokenizer of a checkpoint, checked with config.json against the layout. Raises UserError."""
        rows = cls.image_offset + cls.codebook_size
        config = read_config(checkpoint)
        tokenizer = load_tokenizer(checkpoint)
        check_tokenizer(tokenizer, checkpoint, cls.named_tokens(tokenizer), cls.reserved, cls.lengths)
        check_config(config, checkpoint, cls.mask_id, rows, cls.codes_are_last)
        return tokenizer

    @classmethod
    def encode(cls, tokenizer: PreTrainedTokenizerFast, length: int, texts: Sequence[str]) -> Prompts:
        """Rows of `length` ids, on the CPU; see `Backbone.encode_prompts`."""
        raise NotImplementedError

    def encode_prompts(self, texts: Sequence[str]) -> Prompts:
        return self.on_device(self.encode(self.tokenizer, self.prompt_length, texts))

    @classmethod
    def named_tokens(cls, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
        """Tokens that the tokenizer must have, with their ids; see `check_tokenizer`."""
        raise NotImplementedError

    @cached_property
    def decoder(self) -> Any:
        """The model that turns codes into pixels, loaded at first use. Raises UserError if it is missing."""
        raise NotImplementedError

    def prepare_decoder(self) -> None:
        _ = self.decoder

    def unconditional(self) -> Prompts:
        raise NotImplementedError

    def decode(self, codes_BN: Tensor) -> Tensor:
        raise NotImplementedError

    def position_ids(self, attention_US: Tensor, cut: int) -> Tensor:
        """Places for the rotary embedding, int64 [S] or [U, S], of sequences without their first `cut` pads."""
        raise NotImplementedError

    def image_logits(self, prompts: Prompts, codes_UN: Tensor, wanted_UN: Tensor, kept: Kept | None = None) -> Tensor:
        block_UI = self.block.ids(codes_UN)
        ids_US = torch.cat([prompts.ids_BL, block_UI], dim=1)
        attention_UL = prompts.attention_BL
        seen_US = torch.cat([attention_UL, attention_UL.new_ones(block_UI.shape)], dim=1)
        no_word_UL = wanted_UN.new_zeros(attention_UL.shape)
        positions_US = torch.cat([no_word_UL, self.block.at_slots(wanted_UN)], dim=1)
        cut = 0
        if self.masks_padding:  # pads in front of every row of this call are hidden, so they are left out
            cut = int(attention_UL.any(0).long().argmax())
        seen_US, keeping = seen_US[:, cut:], {}
        if kept is not None:
            keeping = {"kept": kept, "computed": None}
            if kept.computed_UN is not None:
                keeping["computed"] = torch.cat([no_word_UL, self.block.at_slots(kept.computed_UN)], dim=1)[:, cut:]
        return self._policy(
            input_ids=ids_US[:, cut:],
            attention_mask=seen_US if self.masks_padding else None,
            positions=positions_US[:, cut:],
            head_rows=slice(self.block.offset, self.block.offset + self.codebook_size),
            position_ids=self.position_ids(seen_US, cut).to(ids_US.device, non_blocking=True),
            **keeping,
        ).logits


def check_config(config: LladaConfig, checkpoint: Path, mask_id: int, vocabulary_rows: int, exactly: bool) -> None:
    """Refuse a config.json with another mask id, or whose vocabulary does not fit the image codes."""
    wrong = []
    if (mask := getattr(config, "mask_token_id", None)) not in (None, mask_id):
        wrong.append(f"mask_token_id is {mask}, the layout has {mask_id}")
    if config.vocabulary_rows < vocabulary_rows or (exactly and config.vocabulary_rows != vocabulary_rows):
        wrong.append(f"{config.vocabulary_rows} vocabulary rows, but the image codes need {vocabulary_rows}")
    if wrong:
        raise UserError("\n".join(f"{checkpoint}/config.json: {line}" for line in wrong))
