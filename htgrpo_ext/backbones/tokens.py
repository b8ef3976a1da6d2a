"""Tokenizers of published checkpoints, checked against the ids that a prompt layout needs."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerFast

from htgrpo_ext.errors import UserError, one_line

AnyTokenizer = PreTrainedTokenizerFast | CLIPTokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint folder. No code in the folder is run, and no network is used.

    Raises UserError if it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken file leads to any exception in there
        raise UserError(f"{folder}: no tokenizer can be loaded ({one_line(error)})") from None


def token_ids(tokenizer: AnyTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, as the tokenizer gives them."""
    encoded: Any = tokenizer(list(texts), verbose=False)  # its own warning about length comes before ours
    return encoded["input_ids"]


def prompt_ids(
    tokenizer: AnyTokenizer,
    texts: Sequence[str],
    before: str = "",
    after: str = "",
    marks: Sequence[str] = (),
) -> list[list[int]]:
    """Ids of before + text + after for each of a user's texts.

    marks  further texts that only the template may use, whether or not they are tokens of their own

    Raises UserError for a text that is no valid Unicode, and for one in which the tokenizer, or `marks`, sees a marker:
    it would end the template early, or put a mask into the prompt.
    """

    def refuse(text: str, mark: Any) -> NoReturn:
        raise UserError(f"prompt {text[:40]!r}: `{mark}` is a marker of the model and cannot be part of a prompt")

    for text in texts:
        if re.search("[\ud800-\udfff]", text):
            raise UserError(f"prompt {text[:40]!r}: has half of a surrogate pair, which is no character")
        for mark in marks:
            if mark in text:
                refuse(text, mark)
    added = tokenizer.added_tokens_decoder.keys()
    template, *rows = token_ids(tokenizer, [before + after, *(before + text + after for text in texts)])
    own = Counter(token for token in template if token in added)
    for text, row in zip(texts, rows, strict=True):
        for surplus in Counter(token for token in row if token in added) - own:
            refuse(text, tokenizer.convert_ids_to_tokens(surplus))
    return rows


def _is_marker(tokenizer: PreTrainedTokenizerFast, token_id: int) -> bool:
    """Whether a token is never ordinary text: it was added to the vocabulary, or is written like <this> or [this]."""
    if token_id >= len(tokenizer):
        return False
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    return token_id in tokenizer.added_tokens_decoder or (token[:1] + token[-1:]) in ("<>", "[]")


def check_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    named: Mapping[str, int],
    reserved: Mapping[str, int],
    lengths: Collection[int],
) -> None:
    """Refuse a tokenizer whose ids are not the layout's.

    named     tokens the tokenizer must have under this name at this id
    reserved  tokens that take an id which the tokenizer keeps free: no ordinary word may be at this id; if the
              tokenizer knows the name, it must be at this id
    lengths   how many tokens it may have: image codes follow the text, so another length would shift all of them

    Raises UserError with every mismatch, one line each, with both ids.
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
