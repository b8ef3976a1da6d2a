"""The micro model's transformer for the words world: a grid of rows and columns, and the tokenizer's codebook inside.

L prompt tokens, S = L + N sequence positions.
"""

from typing import Any

import torch
from torch import Tensor

from htgrpo_ext.backbones.micro.model import MicroConfig, MicroModel
from htgrpo_ext.words.world import CODEBOOK_SIZE, COLUMNS, PATCH, ROWS


class WordsConfig(MicroConfig):
    """As `MicroConfig`, but the picture has `rows` x `columns` tokens, and the prompt's characters lie along it."""

    model_type = "htgrpo-words"

    def __init__(
        self,
        num_text_tokens: int = 32,
        codebook_size: int = CODEBOOK_SIZE,
        prompt_length: int = 7,
        rows: int = ROWS,
        columns: int = COLUMNS,
        hidden_size: int = 160,
        num_layers: int = 5,
        num_heads: int = 5,
        ffn_size: int = 480,
        rope_base: float = 100.0,
        **kwargs: Any,
    ):
        super().__init__(
            num_text_tokens=num_text_tokens,
            codebook_size=codebook_size,
            prompt_length=prompt_length,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            ffn_size=ffn_size,
            rope_base=rope_base,
            **kwargs,
        )
        del self.grid  # the side of a square
        self.rows = rows
        self.columns = columns

    def positions(self) -> Tensor:
        """Row and column of every place in the sequence. [S, 2]

        Letters stand in the middle row, evenly over the columns, where they would stand in a word of full length; the
        marks before and after them one letter's width further out.
        """
        place = torch.arange(self.prompt_length, device="cpu")
        column = (place - 0.5) * self.columns / (self.prompt_length - 2) - 0.5
        text = torch.stack([torch.full_like(column, (self.rows - 1) / 2), column], dim=1)
        row, column = torch.arange(self.rows, device="cpu"), torch.arange(self.columns, device="cpu")
        return torch.cat([text, torch.cartesian_prod(row, column)])


class WordsModel(MicroModel):
    """The transformer, with a head over the codebook; the codebook is part of the checkpoint."""

    config: WordsConfig  # pyright: ignore[reportIncompatibleVariableOverride], narrower
    config_class = WordsConfig
    codebook: Tensor  # float32 [V, D], whole grey levels

    def __init__(self, config: WordsConfig):
        super().__init__(config)
        self.register_buffer("codebook", torch.zeros(config.codebook_size, PATCH * PATCH))
