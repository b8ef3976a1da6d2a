"""The micro model as a backbone: words | codes, left-padded prompts that end in an image-start marker."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from htgrpo_ext.backbones.checkpoints import Layers, Positive, Size, checked, load_weights, read_json
from htgrpo_ext.backbones.micro.model import MicroConfig, MicroModel
from htgrpo_ext.backbones.policy import Policy, prepare_policy
from htgrpo_ext.core.kept import Kept
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.core.views import Prompts
from htgrpo_ext.errors import UserError
from htgrpo_ext.micro import world
from htgrpo_ext.micro.decoder import decode_codes

PAD, BEGIN, IMAGE_START = range(3)
WORDS = (
    ["a", "and", "left", "right", "of", "above", "below", *world.NUMBER_WORDS.values()]
    + [*world.TEXTURES, *world.COLORS, *world.SHAPES, *(f"{shape}s" for shape in world.SHAPES)]
    + sorted({word for phrase in world.SCENES.values() for word in phrase.split()} - {"a"})
)
WORD_IDS = {word: i for i, word in enumerate(WORDS, start=IMAGE_START + 1)}


class MicroKeys(BaseModel):
    """The keys of a micro checkpoint's config.json; none may be missing."""

    model_type: str
    num_text_tokens: Annotated[Size, Field(ge=IMAGE_START + 1 + len(WORDS))]
    codebook_size: Size
    prompt_length: Annotated[Size, Field(ge=3)]
    grid: Size
    hidden_size: Size
    num_layers: Layers
    num_heads: Size
    ffn_size: Size
    rope_base: Positive


def read_config(folder: Path) -> MicroConfig:
    """The config.json of a checkpoint folder. Raises UserError if there is none, or if it is no micro model's."""
    file = folder / "config.json"
    if not file.exists():
        raise UserError(f"{folder}: no micro checkpoint there (make one with `htgrpo pretrain-micro`)")
    keys = read_json(file)
    if (other := keys.get("model_type", MicroConfig.model_type)) != MicroConfig.model_type:
        raise UserError(f"{file}: a model of type {other!r}, not the micro model")
    config = MicroConfig(**checked(keys, MicroKeys, file))
    if (config.codebook_size, config.grid) != (world.CODEBOOK_SIZE, world.GRID):
        sizes = f"codebook_size {world.CODEBOOK_SIZE} and grid {world.GRID}"
        raise UserError(f"{file}: codebook_size is {config.codebook_size}, grid {config.grid}; the world has {sizes}")
    require_even_heads(config, file)
    return config


def require_even_heads(config: MicroConfig, file: Path) -> None:
    """Raises UserError if the width does not divide: rotary positions take a quarter of a head each."""
    if config.hidden_size % (4 * config.num_heads):
        sizes = f"hidden_size {config.hidden_size}, num_heads {config.num_heads}"
        raise UserError(f"{file}: heads do not divide evenly ({sizes})")


def encode_words(texts: Sequence[str], length: int) -> Prompts:
    """[pad].. [begin] words [image start], left-padded to `length`.

    Raises UserError for a word that is not in the world's vocabulary, and for a prompt that is too long.
    """
    rows = []
    for text in texts:
        words = text.split()
        unknown = [word for word in words if word not in WORD_IDS]
        if unknown:
            raise UserError(f"prompt {text!r}: unknown word `{unknown[0]}` (the micro world knows {', '.join(WORDS)})")
        if len(words) + 2 > length:
            raise UserError(f"prompt {text!r}: {len(words)} words, but the model reads at most {length - 2}")
        row = [BEGIN, *(WORD_IDS[word] for word in words), IMAGE_START]
        rows.append([PAD] * (length - len(row)) + row)
    ids = torch.tensor(rows, dtype=torch.int64)
    return Prompts(ids, ids != PAD, ids > IMAGE_START)


class MicroBackbone(Policy):
    """See `Backbone`."""

    config: MicroConfig
    num_image_tokens = world.NUM_IMAGE_TOKENS
    grid: tuple[int, int] = (world.GRID, world.GRID)
    model_class: type[MicroModel] = MicroModel
    read_config = staticmethod(read_config)

    def __init__(self, model: nn.Module, reference: nn.Module | None = None):
        super().__init__(model, reference)
        self.codebook_size = self.config.codebook_size
        self.mask_id = self.config.mask_id

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        lora: dict[str, Any] | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
        frozen: bool = False,
    ) -> Self:
        """Load a checkpoint folder; see `prepare_policy`. Raises UserError if the folder contains no checkpoint."""
        config = cls.read_config(checkpoint)
        config.name_or_path = str(checkpoint)
        with torch.device("meta"):
            model = cls.model_class(config)
        model = load_weights(model, checkpoint, torch.float32)
        return cls(*prepare_policy(nn.Module.to(model, device), lora, seed, frozen))

    def encode_prompts(self, texts: Sequence[str]) -> Prompts:
        return self.on_device(encode_words(texts, self.config.prompt_length))

    def unconditional(self) -> Prompts:
        return self.encode_prompts([""])

    def image_logits(self, prompts: Prompts, codes_UN: Tensor, wanted_UN: Tensor, kept: Kept | None = None) -> Tensor:
        image_UN = torch.where(codes_UN == MASK, self.mask_id, codes_UN + self.config.image_offset)
        attention_UL = prompts.attention_BL
        seen_US = torch.cat([attention_UL, attention_UL.new_ones(wanted_UN.shape)], dim=1)
        no_word_UL = wanted_UN.new_zeros(attention_UL.shape)
        keeping = {}
        if kept is not None:
            keeping = {"kept": kept, "computed": None}
            if kept.computed_UN is not None:
                keeping["computed"] = torch.cat([no_word_UL, kept.computed_UN], dim=1)
        return self._policy(
            input_ids=torch.cat([prompts.ids_BL, image_UN], dim=1),
            attention_mask=seen_US,
            positions=torch.cat([no_word_UL, wanted_UN], dim=1),
            **keeping,
        ).logits

    def decode(self, codes_BN: Tensor) -> Tensor:
        return decode_codes(codes_BN)
