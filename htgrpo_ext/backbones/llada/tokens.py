"""Tokenizers of published checkpoints, checked against the ids that a layout is built on."""

from collections.abc import Collection, Mapping
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from htgrpo_ext.errors import UserError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, without running code that lies there."""
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer can be loaded ({str(error).splitlines()[0]})") from None


def _is_marker(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    """Whether a token is no part of ordinary text: added to the vocabulary, or written like <this> or [this]."""
    if token_id >= len(tokenizer):
        return False
    token = tokenizer.convert_ids_to_tokens(token_id)
    return token_id in tokenizer.added_tokens_decoder or (token[:1] + token[-1:]) in ("<>", "[]")


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    named: Mapping[str, int],
    reserved: Mapping[str, int],
    lengths: Collection[int],
) -> None:
    """Refuse a tokenizer whose ids are not the layout's.

    named     tokens the tokenizer must have under this name at this id
    reserved  tokens that take an id kept free for such use: it must be no ordinary word; where the tokenizer
              knows the name as well, it must be at this id
    lengths   how many tokens it may have: image codes follow the text, so another length would shift them all

    Raises UserError with every mismatch, one line each, both ids in it.
    """
    vocabulary, wrong = tokenizer.get_vocab(), []
    for name, want in {**reserved, **named}.items():
        have = vocabulary.get(name)
        if have is None and name in named:
            wrong.append(f"has no token {name}, which the layout has at {want}")
        elif have not in (None, want):
            wrong.append(f"has {name} at {have}, the layout at {want}")
        elif have is None and not _is_marker(tokenizer, want):
            word = tokenizer.convert_ids_to_tokens(want) if want < len(tokenizer) else "nothing"
            wrong.append(f"has {word!r} at {want}, where the layout has {name}")
    if len(tokenizer) not in lengths:
        wrong.append(f"has {len(tokenizer)} tokens, not {' or '.join(map(str, lengths))}: image codes would be shifted")
    if wrong:
        raise UserError("\n".join(f"{folder}: the tokenizer {line}" for line in wrong))
