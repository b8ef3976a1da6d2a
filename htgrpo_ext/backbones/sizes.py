"""Memory and time of a training cycle, estimated from the sizes of a model. Comments name the assumptions.

N image tokens, V codebook.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from htgrpo_ext.backbones.policy import is_target
from htgrpo_ext.backbones.settings import ModelSection
from htgrpo_ext.core.drawing import DRAWN_AT_ONCE
from htgrpo_ext.core.views import Prompts

FLOAT = 4  # bytes; of adapters, optimizer state, log-probabilities and the tables that codes are drawn from
DRAWN_TABLES = 8  # of `draw_codes` and guidance: logits three times, their softmax twice, cumulative sum, entropies


class Sizes(NamedTuple):
    """The sizes that memory and time follow from. `width` and `ffn` are of a block; `element` is in bytes."""

    parameters: int  # of the base model
    in_blocks: int  # of them, in the matrices of blocks, which every position goes through
    trained: int  # parameters that are trained: the same, or the adapters'
    adapters: bool
    layers: int
    width: int
    ffn: int
    sequence: int  # positions of a row, padding included
    num_image_tokens: int
    codebook: int
    element: int  # of a weight of the base model, and of an activation
    recomputed: bool  # activation checkpointing
    source: str | None  # where the sizes come from, if not from the checkpoint
    beside: int = 0  # bytes of frozen models beside it, if they count
    widths: int = 9  # that a block keeps per position for its backward, besides 4 feed-forward widths

    def memory(self, rows: int, positions: int, batch_size: int) -> dict[str, int]:
        """Bytes by part, while `rows` are held for their backward, with logits at `positions` of them.

        batch_size  rows per forward, and so the rows of which a block is recomputed at a time
        """
        state = FLOAT if self.adapters else self.element
        per_block = (self.widths * self.width + 4 * self.ffn) * self.element
        if self.adapters and self.element < FLOAT:  # adapters keep each projection's input once more, in float32
            per_block += (6 * self.width + self.ffn) * FLOAT
        kept = rows * self.layers * per_block
        if self.recomputed:  # every block's input, and all activations of one block
            kept = rows * self.layers * self.width * self.element + min(rows, batch_size) * per_block
        beside = {"frozen models beside it": self.beside} if self.beside else {}
        return {
            "weights": self.parameters * self.element + (self.trained * FLOAT if self.adapters else 0),
            "gradients": self.trained * state,
            "AdamW's two moments": 2 * self.trained * state,
            "frozen reference copy": 0 if self.adapters else self.parameters * self.element,
            **beside,
            "logits": 2 * positions * self.codebook * self.element,  # and their gradient
            "activations": self.sequence * kept,
        }

    def rollout_memory(self, rows: int, positions: int) -> int:
        """Bytes beside the weights while images are sampled.

        rows       of a forward: a block's activations are kept for them. No gradient, so no other block's
        positions  whose logits a batch of images holds, with their prompts and without
        """
        logits = (positions + self.num_image_tokens) * self.codebook * self.element  # and the unconditional first step
        block = rows * self.sequence * (9 * self.width + 4 * self.ffn) * self.element
        return logits + block + DRAWN_TABLES * DRAWN_AT_ONCE * FLOAT

    def row_flops(self) -> float:
        """FLOPs of one row's forward: matrices, attention (QK and AV), the head's codebook rows."""
        matrices = 2 * (self.in_blocks + self.trained * self.adapters) * self.sequence
        attention = 4 * self.sequence**2 * self.width * self.layers
        return matrices + attention + 2 * self.width * self.codebook * self.num_image_tokens

    def rollout_flops(self, rows: int, positions: int) -> float:
        """FLOPs of forwards without gradient: the last block and the head are computed where logits are wanted.

        Behind its keys and values. If more than half of the positions are wanted, the block is computed whole.
        """
        block = (self.in_blocks + self.trained * self.adapters) / self.layers
        keys_and_values = min(2 * self.width**2, block)
        queries = positions if positions <= rows * self.sequence / 2 else rows * self.sequence
        whole = rows * self.sequence * (self.layers - 1)
        matrices = 2 * (block * (whole + queries) + keys_and_values * (rows * self.sequence - queries))
        attention = 4 * self.sequence * self.width * (whole + queries)
        return matrices + attention + 2 * self.width * self.codebook * positions

    def reused_flops(self, computed: int, wanted: int) -> float:
        """FLOPs where only `computed` positions go through the blocks, and see kept keys and values of all others."""
        matrices = 2 * (self.in_blocks + self.trained * self.adapters)
        attention = 4 * self.sequence * self.width * self.layers
        return computed * (matrices + attention) + 2 * self.width * self.codebook * wanted

    def kept_memory(self, rows: int) -> int:
        """Bytes of keys and values that rollouts keep: of these rows and of the fully masked one without a prompt."""
        return (rows + 1) * self.sequence * self.layers * 2 * self.width * self.element

    def new_cost(self) -> int:
        """Cost of a row with gradient, in forwards.

        One for the row itself, one for the gradient of inputs, one for that of the weights if they are trained, and
        one for the second forward of activation checkpointing.
        """
        return 2 + (not self.adapters) + self.recomputed


def sizes_of(
    section: ModelSection,
    build: Callable[[], nn.Module],
    *,
    layers: int,
    width: int,
    ffn: int,
    sequence: int,
    codebook: int,
    element: int,
    recomputed: bool = False,
    source: str | None = None,
    blocks: str = r"blocks\.",
    widths: int = 9,
    beside: int = 0,
) -> Sizes:
    """The sizes of a configured model; see `Sizes` for the numbers.

    build   makes the model with random weights; it is called where tensors have no storage
    blocks  a regular expression that is found in the name of every linear map that all positions go through
    """
    with torch.device("meta"):
        model = build()
    parameters = sum(p.numel() for p in model.parameters())
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    lora = section.lora if section.tuning == "lora" else None
    trained = parameters
    if lora is not None:
        targets = section.lora_targets(lora)
        adapted = [m for name, m in linear.items() if is_target(name, targets)]
        trained = sum(lora.rank * (m.in_features + m.out_features) for m in adapted)
    return Sizes(
        parameters=parameters,
        in_blocks=sum(m.weight.numel() for name, m in linear.items() if re.search(blocks, name)),
        trained=trained,
        adapters=lora is not None,
        layers=layers,
        width=width,
        ffn=ffn,
        sequence=sequence,
        num_image_tokens=section.num_image_tokens,
        codebook=codebook,
        element=element,
        recomputed=recomputed,
        source=source,
        beside=beside,
        widths=widths,
    )


def numbered_prompts(count: int) -> tuple[Prompts, Prompts]:
    """Rows of `count` prompts and of none, for `ModelSection.planned_prompts`; one id each tells them apart."""
    ids = torch.arange(count + 1)[:, None]
    prompts = Prompts(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool))
    return prompts.rows(slice(count)), prompts.rows(slice(count, count + 1))
