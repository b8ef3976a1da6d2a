"""Tiny random checkpoints of aMUSEd, in the published layout, and settings of runs on them.

diffusers and transformers write the checkpoints themselves.
"""

import json
from pathlib import Path

import torch

from helpers.image_sets import written
from helpers.paths import CONFIGS
from htgrpo_ext.config import load_settings
from htgrpo_ext.settings import RunSettings

CODES, MASK_ID, LENGTH = 40, 44, 12  # codes, the id of a masked one, ids of a prompt
SIZES = dict(
    hidden_size=32,
    cond_embed_dim=16,
    micro_cond_encode_dim=8,
    micro_cond_embed_dim=40,
    encoder_hidden_size=24,
    vocab_size=48,
    codebook_size=CODES,
    in_channels=24,
    block_out_channels=24,
    num_res_blocks=1,
    block_num_heads=2,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
    sample_size=4,
)
WORDS = "a photo of the red blue green round cat dog bench two three beside on , ."


def write_tokenizer(folder: Path) -> int:
    """A CLIP tokenizer that has every byte, and every word of WORDS as one token. Returns its length."""
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS.split():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            if (pair := f"{parts[0]} {parts[1]}") not in merges:
                merges.append(pair)
            parts[:2] = ["".join(parts[:2])]
            if parts[0] not in vocabulary:
                vocabulary.append(parts[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    marks = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="!")
    keys = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(keys))
    return len(vocabulary)


TEXT = dict(hidden_size=24, intermediate_size=32, projection_dim=16, num_hidden_layers=3, num_attention_heads=2)
VQ = dict(block_out_channels=[8] * 5, latent_channels=4, num_vq_embeddings=CODES, norm_num_groups=4)


def amused_checkpoint(folder: Path, text=TEXT, vq=VQ, mask_id=MASK_ID, **keys) -> Path:
    """A checkpoint for 64 x 64 pixels, 4 x 4 codes; `keys` change the transformer."""
    from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    words = write_tokenizer(folder / "written")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "written")
    ids = dict(vocab_size=max(words, text.get("vocab_size", 0)), bos_token_id=words - 2, eos_token_id=words - 1)
    text_config = CLIPTextConfig(**{"max_position_embeddings": LENGTH, **text, **ids})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = UVit2DModel(**{**SIZES, **keys})
        for name, weight in transformer.named_parameters():
            if "channelwise_norm" in name:  # zero when a model is made, so that it does nothing
                torch.nn.init.normal_(weight, std=0.5)
        vqvae = VQModel(
            down_block_types=["DownEncoderBlock2D"] * 5,
            up_block_types=["UpDecoderBlock2D"] * 5,
            **vq,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        )
        encoder = CLIPTextModelWithProjection(text_config)
    scheduler = AmusedScheduler(mask_token_id=mask_id)
    parts = dict(vqvae=vqvae, tokenizer=tokenizer, text_encoder=encoder, transformer=transformer, scheduler=scheduler)
    AmusedPipeline(**parts).save_pretrained(folder)
    for file in (folder / "written").iterdir():
        file.unlink()
    (folder / "written").rmdir()
    return folder


TINY = [
    "model.dtype=float32",
    "model.size=64",
    "model.lora.rank=2",
    "rollout.prompts_per_cycle=2",
    "rollout.rollouts_per_prompt=2",
    "rollout.steps=2",
    "loop.cycles=2",
    "loop.updates_per_rollout=2",
    "loop.micro_batches=2",
    "loop.save_steps=1",
    "loop.warmup_updates=0",
    "loop.learning_rate=1.0e-2",
    "log.tensorboard=false",
]


def settings_of(method: str, checkpoint: Path, out: Path, *more: str) -> RunSettings:
    """Settings of a tiny run on a checkpoint of this kind."""
    budget = ["method.budget={global: 1, structure: 1, refinement: 0}"] if method == "htgrpo" else []
    prompts = written(out.with_name("prompts.txt"), ["a photo of a red cat", "two dog beside a bench", "a blue bench"])
    source = f"prompts=[{{format: text, path: {prompts}}}]"
    files = [CONFIGS / "model/amused.yaml", CONFIGS / f"method/{method}.yaml"]
    return load_settings(files, [*TINY, *budget, f"model.checkpoint={checkpoint}", f"out={out}", source, *more])
