"""aMUSEd, diffusers' masked image model of 0.6 billion weights: amused-256 and amused-512."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from htgrpo_ext.backbones.settings import ModelSection
from htgrpo_ext.errors import UserError

if TYPE_CHECKING:
    import torch

    from htgrpo_ext.backbones.amused.backbone import AmusedBackbone
    from htgrpo_ext.backbones.sizes import Sizes
    from htgrpo_ext.core.views import Prompts

PIXELS = 16  # of a code's side
Side = Annotated[int, Field(ge=PIXELS, le=1024, multiple_of=PIXELS)]
Coordinate = Annotated[int, Field(ge=0, le=4096)]

# The folders of a checkpoint, and the class that model_index.json names for each.
PARTS = {
    "transformer": "UVit2DModel",
    "vqvae": "VQModel",
    "text_encoder": "CLIPTextModelWithProjection",
    "tokenizer": "CLIPTokenizer",
    "scheduler": "AmusedScheduler",
}

# The linear maps that every image position goes through; the others see the words, or one vector a row.
PER_POSITION = r"attn\d\.to_(q|out)|attn1\.to_[kv]|ff\.net|channelwise|project_(to|from)_hidden"


class Amused(ModelSection):
    """Settings of MODEL=amused."""

    name: Literal["amused"]
    dtype: Literal["bfloat16", "float32"]
    activation_checkpointing: bool
    size: Side
    crop: tuple[Coordinate, Coordinate]
    aesthetic_score: Annotated[float, Field(ge=0, le=10)]

    projections = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    planned_on = ("1 x RTX 4090", "1 x A100-80G", "8 CPU cores")
    not_in_maskgrpo = "its transformer is a class of diffusers, and MaskGRPO's loop trains models of transformers"

    source = "amused/amused-256"

    @property
    def num_image_tokens(self) -> int:
        return (self.size // PIXELS) ** 2

    def absent(self, pixels: bool) -> list[str]:
        return super().absent(pixels) or [
            f"{self.checkpoint}: no {part} there; aMUSEd's checkpoint has {', '.join(PARTS)} and model_index.json"
            for part in (*(f"{part}/" for part in PARTS), "model_index.json")
            if not (self.checkpoint / part).exists()
        ]

    @staticmethod
    def require_diffusers() -> None:
        """Raises UserError if diffusers, which has the model's classes, is missing."""
        if find_spec("diffusers") is None:
            raise UserError("aMUSEd is a model of diffusers: pip install -c constraints.txt -e '.[amused]'")

    def load(self, device: "str | torch.device", seed: int, frozen: bool) -> "AmusedBackbone":
        self.require_diffusers()
        import torch

        from htgrpo_ext.backbones.amused.backbone import AmusedBackbone

        return AmusedBackbone.load(
            self.checkpoint,
            self.lora_keywords(),
            device,
            seed,
            frozen=frozen,
            dtype=getattr(torch, self.dtype),
            activation_checkpointing=self.activation_checkpointing,
            size=self.size,
            crop=self.crop,
            aesthetic_score=self.aesthetic_score,
        )

    def prompt_encoder(self) -> "Callable[[Sequence[str]], Prompts]":
        self.require_diffusers()
        from htgrpo_ext.backbones.amused.checkpoint import load_tokenizer, read_folder
        from htgrpo_ext.backbones.amused.texts import encode

        read_folder(self.checkpoint, self.size)
        return partial(encode, load_tokenizer(self.checkpoint))

    def sizes(self) -> "Sizes":
        self.require_diffusers()
        import torch
        from diffusers.models.unets.uvit_2d import UVit2DModel

        from htgrpo_ext.backbones.amused.checkpoint import frozen_bytes, published_keys, read_folder
        from htgrpo_ext.backbones.sizes import sizes_of

        there, element = self.checkpoint if self.checkpoint.exists() else None, getattr(torch, self.dtype).itemsize
        keys = read_folder(there, self.size).transformer if there else published_keys(self.size)
        with torch.device("meta"):
            model = UVit2DModel(**keys)
        config: Any = model.config
        return sizes_of(
            self,
            lambda: model,
            layers=config.num_hidden_layers + 2 * config.num_res_blocks,
            width=config.hidden_size,
            ffn=config.intermediate_size,
            sequence=self.num_image_tokens // (4 if config.downsample else 1),
            codebook=config.codebook_size,
            element=element,
            recomputed=self.activation_checkpointing,
            source=None if there else f"{self.checkpoint} is not there: the published model's sizes",
            blocks=PER_POSITION,
            widths=18,  # counted: autograd keeps 13 to 22, by type and tuning
            beside=frozen_bytes(there, element),
        )

    def planned_prompts(self, count: int) -> "tuple[Prompts, Prompts]":
        from htgrpo_ext.backbones.sizes import numbered_prompts

        return numbered_prompts(count)
