"""Tiny random checkpoints of MMaDA and Lumina-DiMOO in the published format.

That is config.json, safetensors in shards with their index, and a tokenizer.
Every name is written out here, not taken from our model, so that loading is checked against something. The ids are
the real ones; words are made up.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

SENTENCES = """
a photo of the red blue green round cat dog bench two three beside on . ,
Generate an image according to text prompt
"""
WORDS = SENTENCES.split()
ORDINARY, RESERVED = 126080, 252  # ordinary tokens of LLaDA's tokenizer; reserved ones between bos and the mask
MMADA_ROWS, LUMINA_ROWS = 134656, 134548  # of the embedding and the head
# What Lumina-DiMOO adds at 126349 and after; the first two and the fourth and fifth under names of our own.
LUMINA_TOKENS = ["<image>", "</image>", "<uncondition>", "<spare>", "</spare>", "<answer>", "</answer>"]

# Every key that the authors' configuration class reads.
CONFIG = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 32,
    "embedding_dropout": 0.0,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 48,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "use_cache": False,
    "weight_tying": False,
}


def special_tokens() -> list[str]:
    """LLaDA's, from id 126080 on."""
    named = ["<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]"]
    reserved = [f"<|reserved_token_{i}|>" for i in range(RESERVED + 9)]
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return [*named, *reserved[:RESERVED], "<|mdm_mask|>", *reserved[RESERVED:], *headers]


def write_tokenizer(folder: Path, special: list[str]) -> None:
    """A word-level tokenizer of 126,080 ordinary tokens, most of them filler, and `special` behind them."""
    vocabulary = {word: i for i, word in enumerate([*WORDS, *(f"filler{i}" for i in range(ORDINARY - len(WORDS)))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))


def write_weights(folder: Path, config: dict, seed: int = 0) -> None:
    """Random weights in three shards, with the published names."""
    generator = torch.Generator().manual_seed(seed)
    width, ffn, rows = config["d_model"], config["mlp_hidden_size"], config["embedding_size"] or config["vocab_size"]
    kv_width = width // config["n_heads"] * config["n_kv_heads"]

    def linear(outputs: int, inputs: int) -> torch.Tensor:
        return torch.randn(outputs, inputs, generator=generator) * inputs**-0.5

    def norm() -> torch.Tensor:
        return 1 + 0.1 * torch.randn(width, generator=generator)

    first, last = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
    shards: dict[str, dict[str, torch.Tensor]] = {first: {}, "model-00002-of-00003.safetensors": {}, last: {}}
    shards[first]["model.transformer.wte.weight"] = torch.randn(rows, width, generator=generator)
    for i in range(config["n_layers"]):
        block = {
            "attn_norm": norm(),
            "q_proj": linear(width, width),
            "k_proj": linear(kv_width, width),
            "v_proj": linear(kv_width, width),
            "attn_out": linear(width, width),
            "ff_norm": norm(),
            "ff_proj": linear(ffn, width),
            "up_proj": linear(ffn, width),
            "ff_out": linear(width, ffn),
        }
        shard = list(shards.values())[1]
        for name, weight in block.items():
            shard[f"model.transformer.blocks.{i}.{name}.weight"] = weight
            if config["include_qkv_bias"] and name in ("q_proj", "k_proj", "v_proj"):
                shard[f"model.transformer.blocks.{i}.{name}.bias"] = torch.randn(len(weight), generator=generator)
    shards[last]["model.transformer.ln_f.weight"] = norm()
    if not config["weight_tying"]:
        shards[last]["model.transformer.ff_out.weight"] = linear(rows, width)
    for name, weights in shards.items():
        save_file(weights, folder / name, metadata={"format": "pt"})
    places = {key: name for name, weights in shards.items() for key in weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_config(folder: Path, **keys) -> dict:
    config = {**CONFIG, **keys}
    (folder / "config.json").write_text(json.dumps(config))
    return config


def mmada_checkpoint(folder: Path, **keys) -> Path:
    """A checkpoint of MMaDA with two blocks of width 32; `keys` change its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"vocab_size": MMADA_ROWS, "embedding_size": MMADA_ROWS, "new_vocab_size": MMADA_ROWS}
    extra = {"model_type": "mmada", "llm_vocab_size": 126464, "codebook_size": 8192, "num_vq_tokens": 1024}
    config = write_config(folder, **{**sizes, **extra, "architectures": ["MMadaModelLM"], **keys})
    write_weights(folder, config)
    write_tokenizer(folder, special_tokens())
    return folder


def lumina_special_tokens() -> list[str]:
    """LLaDA's and seven more; the marks of system and user in reserved places, theirs not being known."""
    special = special_tokens()
    for i, mark in enumerate(["<system>", "</system>", "<user>", "</user>"]):
        special[special.index(f"<|reserved_token_{RESERVED + 4 + i}|>")] = mark
    return special + LUMINA_TOKENS


def lumina_checkpoint(folder: Path, **keys) -> Path:
    """A checkpoint of Lumina-DiMOO with two blocks of width 32; `keys` change its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"vocab_size": LUMINA_ROWS, "embedding_size": LUMINA_ROWS}
    config = write_config(folder, **{**sizes, "model_type": "llada", **keys})
    write_weights(folder, config, seed=1)
    write_tokenizer(folder, lumina_special_tokens())
    return folder


def write_vqvae(folder: Path) -> None:
    """A random VQ model of diffusers in `folder`/vqvae: 8,192 codes of 16 x 16 pixels."""
    from diffusers import VQModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        VQModel(
            down_block_types=["DownEncoderBlock2D"] * 5,
            up_block_types=["UpDecoderBlock2D"] * 5,
            block_out_channels=[8] * 5,
            latent_channels=4,
            vq_embed_dim=4,
            num_vq_embeddings=8192,
            norm_num_groups=4,
            lookup_from_codebook=True,
            force_upcast=True,
        ).save_pretrained(folder / "vqvae")
