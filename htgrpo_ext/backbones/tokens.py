"""Tokenizers of published checkpoints, checked against the ids that a layout is built on."""

from collections.abc import Mapping
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from htgrpo_ext.errors import UserError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, without running code that lies there."""
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer can be loaded ({str(error).splitlines()[0]})") from None


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    named: Mapping[str, int],
    reserved: Mapping[str, int],
    image_offset: int,
) -> None:
    """Refuse a tokenizer whose ids are not the layout's.

    named         tokens the tokenizer must have under this name at this id
    reserved      tokens that take an id kept free for such use: it must be no ordinary word; where the tokenizer
                  knows the name as well, it must be at this id
    image_offset  id of image code 0, which must be the tokenizer's length

    Raises UserError with every mismatch, one line each, both ids in it.
    """
    vocabulary, special = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    wrong = []
    for name, want in {**reserved, **named}.items():
        have = vocabulary.get(name)
        if have is None and name in named:
            wrong.append(f"has no token {name}, which the layout has at {want}")
        elif have not in (None, want):
            wrong.append(f"has {name} at {have}, the layout at {want}")
        elif want not in special:
            word = tokenizer.convert_ids_to_tokens(want) if want < len(tokenizer) else None
            wrong.append(f"has {word!r} at {want}, where the layout has {name}")
    if len(tokenizer) != image_offset:
        wrong.append(f"has {len(tokenizer)} tokens, so image codes would begin there, not at {image_offset}")
    if wrong:
        raise UserError("\n".join(f"{folder}: the tokenizer {line}" for line in wrong))
