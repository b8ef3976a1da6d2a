"""aMUSEd's prompts: rows of ids as AmusedPipeline makes them, and what its frozen text encoder gives for a row.

U rows, L ids, D width.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from htgrpo_ext.backbones.tokens import prompt_ids
from htgrpo_ext.core.views import Prompts
from htgrpo_ext.errors import UserError

HIDDEN = "!"  # stands for a hidden word: CLIP has no mask token, and its end mark would cut the text off there
KEPT = 1024  # rows whose states are kept; 250 MB of amused-256's in float32


def encode(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Prompts:
    """begin text end [pad].. with as many ids as the text encoder reads; a longer text is cut, as the pipeline does.

    Raises UserError for a text that contains a marker.
    """
    length = tokenizer.model_max_length
    begin, end, pad = (cast(int, getattr(tokenizer, f"{mark}_token_id")) for mark in ("bos", "eos", "pad"))
    ids_UL = torch.full((len(texts), length), pad, dtype=torch.int64)
    attention_UL, words_UL = torch.zeros_like(ids_UL, dtype=torch.bool), torch.zeros_like(ids_UL, dtype=torch.bool)
    for u, (_, *words, _) in enumerate(prompt_ids(tokenizer, texts)):
        row = [begin, *words[: length - 2], end]
        ids_UL[u, : len(row)] = torch.tensor(row)
        attention_UL[u, : len(row)] = True
        words_UL[u, 1 : len(row) - 1] = True
    return Prompts(ids_UL, attention_UL, words_UL)


def hidden_word_id(tokenizer: CLIPTokenizer, where: object) -> int:
    """The id that stands for a hidden word. Raises UserError if the tokenizer does not have it."""
    found = tokenizer.get_vocab().get(HIDDEN)
    if found is None:
        raise UserError(f"{where}: the tokenizer has no token {HIDDEN}, which stands for a hidden word")
    return found


class TextStates:
    """The frozen text encoder, and what it gave for each row of ids: a prompt is encoded once.

    A row is encoded alone. So its states do not depend on which rows were encoded before or beside it, and a resumed
    run has the same. Pads are read like words, as in AmusedPipeline.
    """

    def __init__(self, encoder: nn.Module, kept: int = KEPT):
        self.encoder, self.kept = encoder, kept
        self._states: OrderedDict[tuple[int, ...], tuple[Tensor, Tensor]] = OrderedDict()

    @torch.no_grad()
    def of(self, ids_UL: Tensor) -> tuple[Tensor, Tensor]:
        """States [U, L, D] of the last layer but one, and the projected pooled state [U, D]."""
        rows = [tuple(row) for row in ids_UL.tolist()]
        for u, row in enumerate(rows):
            if row not in self._states:
                output: Any = self.encoder(ids_UL[u : u + 1], output_hidden_states=True)
                self._states[row] = output.hidden_states[-2][0], output.text_embeds[0]
            self._states.move_to_end(row)
        states, pooled = zip(*(self._states[row] for row in rows), strict=True)
        while len(self._states) > self.kept:
            self._states.popitem(last=False)
        return torch.stack(states), torch.stack(pooled)
