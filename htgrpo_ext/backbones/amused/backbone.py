"""aMUSEd as a backbone: diffusers' UVit2DModel sees a grid of codes, the words by cross-attention, and what kind of
image it is by one vector (pooled text, size, crop, aesthetic score).

Classes, files and defaults are those of AmusedPipeline.

U rows, L prompt tokens, N = H*W image tokens, V codebook, M wanted positions.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.unets.uvit_2d import UVit2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute
from transformers import CLIPTokenizer

from htgrpo_ext.backbones.adapters import copy_files
from htgrpo_ext.backbones.amused import PIXELS
from htgrpo_ext.backbones.amused.checkpoint import load_text_encoder, load_tokenizer, load_transformer, read_folder
from htgrpo_ext.backbones.amused.texts import TextStates, encode, hidden_word_id
from htgrpo_ext.backbones.decoding import load_vq_model, vq_pixels
from htgrpo_ext.backbones.policy import Policy, prepare_policy
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.core.views import Prompts


class AmusedBackbone(Policy):
    """See `Backbone`."""

    blocks = "transformer_layers"

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        tokenizer: CLIPTokenizer,
        text_encoder: nn.Module,
        checkpoint: Path,
        image_mask_id: int,
        size: int = 256,
        crop: tuple[int, int] = (0, 0),
        aesthetic_score: float = 6,
    ):
        """
        checkpoint       the folder, for its decoder
        image_mask_id    id of a masked image token
        size             pixels a side
        crop             coordinates of the crop that the images should seem to be of
        aesthetic_score  as the LAION classifier would give it
        """
        super().__init__(model, reference)
        self.tokenizer, self.texts, self.checkpoint = tokenizer, TextStates(text_encoder), checkpoint
        self.grid = (size // PIXELS, size // PIXELS)
        self.num_image_tokens = self.grid[0] * self.grid[1]
        self.codebook_size: int = self.config.codebook_size
        self.mask_id, self.image_mask_id = hidden_word_id(tokenizer, checkpoint / "tokenizer"), image_mask_id
        self.conditions = [size, size, *crop, aesthetic_score]  # in the pipeline's order

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
        size: int = 256,
        **conditions: Any,
    ) -> Self:
        """Load a checkpoint folder.

        lora, seed, frozen  see `prepare_policy`
        size, conditions    see the constructor

        Raises UserError for a folder that is no such checkpoint, or not whole.
        """
        folder, tokenizer = read_folder(checkpoint, size), load_tokenizer(checkpoint)
        model = load_transformer(checkpoint, folder.transformer, dtype)
        text_encoder = nn.Module.to(load_text_encoder(checkpoint, dtype), device)
        policy, reference = prepare_policy(nn.Module.to(model, device), lora, seed, frozen)
        if activation_checkpointing and not frozen:
            recompute_blocks(model)
        return cls(policy, reference, tokenizer, text_encoder, checkpoint, folder.mask_id, size, **conditions)

    def encode_prompts(self, texts: Sequence[str]) -> Prompts:
        return self.on_device(encode(self.tokenizer, texts))

    def unconditional(self) -> Prompts:
        return self.encode_prompts([""])

    def image_logits(self, prompts: Prompts, codes_UN: Tensor, wanted_UN: Tensor) -> Tensor:
        states_ULD, pooled_UD = self.texts.of(prompts.ids_BL)
        conditions = torch.tensor(self.conditions, dtype=states_ULD.dtype, device=codes_UN.device)
        logits_UVHW = self._policy(
            torch.where(codes_UN == MASK, self.image_mask_id, codes_UN).view(-1, *self.grid),
            encoder_hidden_states=states_ULD,
            pooled_text_emb=pooled_UD,
            micro_conds=conditions.expand(len(codes_UN), -1),
        )
        return logits_UVHW.flatten(2).transpose(1, 2)[wanted_UN]

    @cached_property
    def decoder(self) -> Any:
        """The VQ model, loaded at first use. Raises UserError if it is not whole."""
        return load_vq_model(self.checkpoint / "vqvae", PIXELS, self.codebook_size).to(self.device)

    def prepare_decoder(self) -> None:
        _ = self.decoder

    def decode(self, codes_BN: Tensor) -> Tensor:
        return vq_pixels(self.decoder, codes_BN, self.grid)

    def save(self, folder: Path) -> None:
        if not isinstance(self.model, UVit2DModel):  # adapters
            return super().save(folder)
        self.model.save_pretrained(folder / "transformer")
        copy_files(self.checkpoint, folder, {self.checkpoint / "transformer"})


def recompute_blocks(model: UVit2DModel) -> None:
    """Forget what is inside a block after the forward, and compute it again for the backward.

    UVit2DModel's own switch fails in diffusers 0.32.2: it hands arguments on by name to a function that takes none so.
    """

    def recomputed(forward: Callable) -> Callable:
        def run(*arguments: Any, **keywords: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*arguments, **keywords)
            return recompute(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **keywords)

        return run

    for side in (model.down_block, model.up_block):
        for block in (*side.res_blocks, *side.attention_blocks):
            block.forward = recomputed(block.forward)
    for layer in model.transformer_layers:
        layer.forward = recomputed(layer.forward)
