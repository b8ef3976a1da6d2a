"""The words world's model as a backbone: letters | codes. The n-th letter always has the n-th place of the prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from htgrpo_ext.backbones.checkpoints import Layers, Positive, Size, checked, read_json
from htgrpo_ext.backbones.micro.backbone import MicroBackbone, require_even_heads
from htgrpo_ext.backbones.words.model import WordsConfig, WordsModel
from htgrpo_ext.core.views import Prompts
from htgrpo_ext.errors import UserError
from htgrpo_ext.pixels import from_levels
from htgrpo_ext.words import tokenizer, world

PAD, BEGIN, IMAGE_START = range(3)
LETTER_IDS = {letter: i for i, letter in enumerate(world.LETTERS, start=IMAGE_START + 1)}
PROMPT_LENGTH = world.LONGEST + 2


class WordsKeys(BaseModel):
    """The keys of a words checkpoint's config.json; none may be missing."""

    model_type: str
    num_text_tokens: Annotated[Size, Field(ge=IMAGE_START + 1 + len(LETTER_IDS))]
    codebook_size: Size
    prompt_length: Size
    rows: Size
    columns: Size
    hidden_size: Size
    num_layers: Layers
    num_heads: Size
    ffn_size: Size
    rope_base: Positive


def read_config(folder: Path) -> WordsConfig:
    """The config.json of a checkpoint folder. Raises UserError if there is none, or if it is another model's."""
    file = folder / "config.json"
    if not file.exists():
        raise UserError(f"{folder}: no words checkpoint there (make one with `htgrpo pretrain-words`)")
    keys = read_json(file)
    if (other := keys.get("model_type", WordsConfig.model_type)) != WordsConfig.model_type:
        raise UserError(f"{file}: a model of type {other!r}, not the words model")
    config = WordsConfig(**checked(keys, WordsKeys, file))
    wanted = {
        "codebook_size": world.CODEBOOK_SIZE,
        "rows": world.ROWS,
        "columns": world.COLUMNS,
        "prompt_length": PROMPT_LENGTH,
    }
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise UserError(f"{file}: {name} is {getattr(config, name)}; the world has {value}")
    require_even_heads(config, file)
    return config


def encode_letters(texts: Sequence[str]) -> Prompts:
    """[begin] letters [pad].. [image start]; an empty prompt has no letters, and asks for any picture.

    Raises UserError for a prompt that is not `the word "..."` around one to five lower-case letters.
    """
    rows = []
    for text in texts:
        framed = text.startswith(world.BEFORE) and text.endswith(world.AFTER)
        word = text[len(world.BEFORE) : -len(world.AFTER)] if framed else ""
        if text and not word:
            raise UserError(f"prompt {text!r}: is not of the form {world.BEFORE}river{world.AFTER}")
        if unknown := [letter for letter in word if letter not in LETTER_IDS]:
            raise UserError(f"prompt {text!r}: unknown character `{unknown[0]}` (the words world knows a to z)")
        if len(word) > world.LONGEST:
            raise UserError(f"prompt {text!r}: {len(word)} letters, but the model reads at most {world.LONGEST}")
        letters = [LETTER_IDS[letter] for letter in word]
        rows.append([BEGIN, *letters, *[PAD] * (world.LONGEST - len(word)), IMAGE_START])
    ids = torch.tensor(rows, dtype=torch.int64)
    return Prompts(ids, ids != PAD, ids > IMAGE_START)


class WordsBackbone(MicroBackbone):
    """See `Backbone`."""

    config: WordsConfig  # pyright: ignore[reportIncompatibleVariableOverride], narrower
    num_image_tokens = world.NUM_IMAGE_TOKENS
    grid = (world.ROWS, world.COLUMNS)
    model_class = WordsModel
    read_config = staticmethod(read_config)

    def __init__(self, model: nn.Module, reference: nn.Module | None = None):
        super().__init__(model, reference)
        base: Any = getattr(model, "get_base_model", lambda: model)()
        self.codebook: Tensor = base.codebook

    def encode_prompts(self, texts: Sequence[str]) -> Prompts:
        return self.on_device(encode_letters(texts))

    def decode(self, codes_BN: Tensor) -> Tensor:
        grey_BHW = tokenizer.decode(codes_BN, self.codebook)
        return from_levels(grey_BHW)[:, None].expand(-1, 3, -1, -1)
