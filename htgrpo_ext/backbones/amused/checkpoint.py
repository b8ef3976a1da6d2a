"""aMUSEd's checkpoint folder, as diffusers publishes it: what its files say is checked before any weight is read.

model_index.json  transformer/  vqvae/  text_encoder/  tokenizer/  scheduler/
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.uvit_2d import UVit2DModel
from pydantic import BaseModel, Field
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from htgrpo_ext.backbones.amused import PARTS, PIXELS
from htgrpo_ext.backbones.checkpoints import (
    DIFFUSERS,
    Layers,
    Positive,
    Size,
    checked,
    load_by_library,
    load_weights,
    read_json,
)
from htgrpo_ext.errors import UserError, one_line

CONDITIONS = 5  # width, height, two crop coordinates, aesthetic score
LONGEST = 256  # words of a row; CLIP's rows have 77
Share = Annotated[float, Field(ge=0, lt=1)]


class TransformerKeys(BaseModel):
    """The keys of transformer/config.json: all that UVit2DModel takes, under its names."""

    hidden_size: Size
    use_bias: bool
    hidden_dropout: Share
    cond_embed_dim: Size
    micro_cond_encode_dim: Size
    micro_cond_embed_dim: Size
    encoder_hidden_size: Size
    vocab_size: Size
    codebook_size: Size
    in_channels: Size
    block_out_channels: Size
    num_res_blocks: Layers
    downsample: bool
    upsample: bool
    block_num_heads: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    attention_dropout: Share
    intermediate_size: Size
    layer_norm_eps: Positive
    ln_elementwise_affine: bool
    sample_size: Size


class TextKeys(BaseModel):
    """The keys of text_encoder/config.json that the rest must agree with."""

    hidden_size: Size
    projection_dim: Size
    vocab_size: Size
    max_position_embeddings: Size
    num_hidden_layers: Annotated[int, Field(ge=2, le=1000)]  # the last but one is read


class SchedulerKeys(BaseModel):
    """The keys of scheduler/scheduler_config.json."""

    mask_token_id: int
    masking_schedule: Literal["cosine"] = "cosine"


class Folder(NamedTuple):
    """What the files of a checkpoint folder say."""

    transformer: dict[str, Any]  # the keywords of UVit2DModel
    mask_id: int  # of an image token
    text_length: int  # most ids that the text encoder reads
    text_vocabulary: int


def read_folder(checkpoint: Path, size: int) -> Folder:
    """Read and check everything but the weights.

    size  of the images: pixels a side

    Raises UserError, one line a mistake.
    """
    read_index(checkpoint)
    file = checkpoint / "transformer" / "config.json"
    keys = checked(read_json(file), TransformerKeys, file)
    file_text, file_mask = checkpoint / "text_encoder/config.json", checkpoint / "scheduler/scheduler_config.json"
    text = checked(read_json(file_text), TextKeys, file_text)
    mask_id = checked(read_json(file_mask), SchedulerKeys, file_mask)["mask_token_id"]
    side, want = keys["sample_size"] * PIXELS, CONDITIONS * keys["micro_cond_encode_dim"]
    wrong = []
    if keys["encoder_hidden_size"] != text["hidden_size"]:
        wrong.append(f"encoder_hidden_size is {keys['encoder_hidden_size']}, the text encoder's {text['hidden_size']}")
    if keys["cond_embed_dim"] != (given := text["projection_dim"]):
        wrong.append(f"cond_embed_dim is {keys['cond_embed_dim']}, the text encoder's projection_dim {given}")
    if keys["micro_cond_embed_dim"] != want:
        wrong.append(f"micro_cond_embed_dim is {keys['micro_cond_embed_dim']}, not {want} (5 x micro_cond_encode_dim)")
    if keys["downsample"] != keys["upsample"]:
        wrong.append("downsample and upsample differ, so the image that comes out has another size")
    if not keys["codebook_size"] <= mask_id < keys["vocab_size"]:
        wrong.append(
            f"the scheduler's mask_token_id {mask_id} is not between codebook_size {keys['codebook_size']} and "
            f"vocab_size {keys['vocab_size']}"
        )
    if size != side:
        wrong.append(f"sample_size is {keys['sample_size']}: images have {side} pixels a side, not {size} (model.size)")
    if wrong:
        raise UserError("\n".join(f"{file}: {line}" for line in wrong))
    return Folder(keys, mask_id, text["max_position_embeddings"], text["vocab_size"])


def read_index(checkpoint: Path) -> None:
    """Check model_index.json: an AmusedPipeline, and the class of each part. Raises UserError."""
    file = checkpoint / "model_index.json"
    index = read_json(file)
    if (pipeline := index.get("_class_name")) != "AmusedPipeline":
        raise UserError(f"{file}: _class_name is {one_line(repr(pipeline), 40)}, not 'AmusedPipeline'")
    wrong = []
    for part, name in PARTS.items():
        given = index.get(part)
        found = given[1] if isinstance(given, list) and len(given) == 2 else given
        if found != name:
            wrong.append(f"{file}: {part} is {one_line(repr(found), 40)}, not {name!r}")
    if wrong:
        raise UserError("\n".join(wrong))


def load_transformer(checkpoint: Path, keys: dict[str, Any], dtype: torch.dtype) -> UVit2DModel:
    """The transformer on the CPU, for evaluation. Raises UserError unless its weights are all there, and no others."""
    folder = checkpoint / "transformer"
    try:
        with torch.device("meta"):
            model = UVit2DModel(**keys)
    except Exception as error:  # sizes that do not go together fail anywhere in there
        raise UserError(f"{folder / 'config.json'}: no model can be made of it ({one_line(error)})") from None
    return load_weights(model, folder, dtype, stem=DIFFUSERS)


def load_text_encoder(checkpoint: Path, dtype: torch.dtype) -> nn.Module:
    """The frozen text encoder, on the CPU. Raises UserError unless its weights are all there and finite."""
    folder = checkpoint / "text_encoder"
    options: dict[str, Any] = dict(torch_dtype=dtype, local_files_only=True, use_safetensors=True)
    return load_by_library(
        lambda: CLIPTextModelWithProjection.from_pretrained(folder, output_loading_info=True, **options), folder
    )


def load_tokenizer(checkpoint: Path) -> CLIPTokenizer:
    """The tokenizer, of the class that the pipeline uses. Raises UserError if it does not fit the text encoder."""
    folder, config = checkpoint / "tokenizer", checkpoint / "text_encoder" / "config.json"
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a broken file leads to any exception in there
        raise UserError(f"{folder}: no tokenizer can be loaded ({one_line(error)})") from None
    text = checked(read_json(config), TextKeys, config)
    if tokenizer.model_max_length > text["max_position_embeddings"]:
        raise UserError(
            f"{folder}: rows of {tokenizer.model_max_length} ids (model_max_length), but the text encoder reads "
            f"{text['max_position_embeddings']}"
        )
    if len(tokenizer) > text["vocab_size"]:
        raise UserError(f"{folder}: {len(tokenizer)} tokens, but the text encoder knows {text['vocab_size']}")
    return tokenizer


def frozen_bytes(checkpoint: Path | None, element: int) -> int:
    """Bytes of the text encoder and of the decoder, which are not trained; of the published ones without a folder.

    element  bytes of a weight of the text encoder; the decoder's are float32
    """
    text, vq = PUBLISHED_TEXT, PUBLISHED_VQ
    if checkpoint is not None:
        text, vq = read_json(checkpoint / "text_encoder/config.json"), read_json(checkpoint / "vqvae/config.json")
    models: list[Any] = []
    with torch.device("meta"):
        models += [CLIPTextModelWithProjection(CLIPTextConfig(**text)), VQModel.from_config(vq)]
    encoder, decoder = (sum(p.numel() for p in model.parameters()) for model in models)
    return encoder * element + decoder * 4


PUBLISHED_TEXT: dict[str, Any] = dict(
    hidden_size=768, projection_dim=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
)
PUBLISHED_VQ: dict[str, Any] = {
    "block_out_channels": [128, 256, 256, 512, 768],
    "down_block_types": ["DownEncoderBlock2D"] * 5,
    "up_block_types": ["UpDecoderBlock2D"] * 5,
    "latent_channels": 64,
    "layers_per_block": 2,
    "num_vq_embeddings": 8192,
    "mid_block_add_attention": False,
    "lookup_from_codebook": True,
}


def published_keys(size: int) -> dict[str, Any]:
    """The keywords of UVit2DModel in which amused-256 and amused-512 differ from its defaults; `size` as elsewhere."""
    return dict(sample_size=size // PIXELS, downsample=size > 256, upsample=size > 256)
