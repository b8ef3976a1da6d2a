"""Tiny random checkpoints of Qwen2-VL, Qwen2.5-VL and HPSv3 in the published formats.

Every name and special id is written out here, so that what loads them is checked against something. Ids, special
tokens and the size of the vocabulary are the real ones; one byte is one token, and no merge is known.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

ORDINARY, ROWS = 151643, 152064  # tokens before the special ones; rows of embedding and head, some never used
NAMES = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end"
NAMES += " quad_start quad_end vision_start vision_end vision_pad image_pad video_pad"
SPECIAL = [f"<|{name}|>" for name in NAMES.split()]  # ids from 151643 on
HPSV3_ROWS = ORDINARY + len(SPECIAL) + 1  # HPSv3 adds one token and cuts the unused rows off
WIDTH, HEADS, FFN, LAYERS, VISION = 32, 2, 48, 2, 32  # of the language model; VISION is the other's width
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Weights:
    """Random tensors under names, from a generator of their own."""

    def __init__(self, seed: int):
        self.generator, self.tensors = torch.Generator().manual_seed(seed), {}

    def random(self, name: str, *shape: int, around: float = 0.0, spread: float = 0.1) -> None:
        self.tensors[name] = around + spread * torch.randn(*shape, generator=self.generator)

    def linear(self, name: str, outputs: int, inputs: int, bias: bool = True) -> None:
        self.random(f"{name}.weight", outputs, inputs, spread=inputs**-0.5)
        if bias:
            self.random(f"{name}.bias", outputs)

    def norm(self, name: str, width: int, bias: bool = False) -> None:
        self.random(f"{name}.weight", width, around=1.0)
        if bias:
            self.random(f"{name}.bias", width)

    def language_model(self, rows: int) -> None:
        self.random("model.embed_tokens.weight", rows, WIDTH, spread=1.0)
        for i in range(LAYERS):
            layer = f"model.layers.{i}"
            self.linear(f"{layer}.self_attn.q_proj", WIDTH, WIDTH)
            self.linear(f"{layer}.self_attn.k_proj", WIDTH // 2, WIDTH)
            self.linear(f"{layer}.self_attn.v_proj", WIDTH // 2, WIDTH)
            self.linear(f"{layer}.self_attn.o_proj", WIDTH, WIDTH, bias=False)
            self.linear(f"{layer}.mlp.gate_proj", FFN, WIDTH, bias=False)
            self.linear(f"{layer}.mlp.up_proj", FFN, WIDTH, bias=False)
            self.linear(f"{layer}.mlp.down_proj", WIDTH, FFN, bias=False)
            self.norm(f"{layer}.input_layernorm", WIDTH)
            self.norm(f"{layer}.post_attention_layernorm", WIDTH)
        self.norm("model.norm", WIDTH)
        self.linear("lm_head", rows, WIDTH, bias=False)

    def vision_model(self, newer: bool) -> None:
        """Qwen2-VL's, or the newer one of Qwen2.5-VL: norms without bias, a gated MLP."""
        self.random("visual.patch_embed.proj.weight", VISION, 3, 2, 14, 14, spread=0.03)
        for i in range(LAYERS):
            block = f"visual.blocks.{i}"
            self.norm(f"{block}.norm1", VISION, bias=not newer)
            self.norm(f"{block}.norm2", VISION, bias=not newer)
            self.linear(f"{block}.attn.qkv", 3 * VISION, VISION)
            self.linear(f"{block}.attn.proj", VISION, VISION)
            if newer:
                self.linear(f"{block}.mlp.gate_proj", FFN, VISION)
                self.linear(f"{block}.mlp.up_proj", FFN, VISION)
                self.linear(f"{block}.mlp.down_proj", VISION, FFN)
            else:
                self.linear(f"{block}.mlp.fc1", 4 * VISION, VISION)
                self.linear(f"{block}.mlp.fc2", VISION, 4 * VISION)
        self.norm("visual.merger.ln_q", VISION, bias=not newer)
        self.linear("visual.merger.mlp.0", 4 * VISION, 4 * VISION)
        self.linear("visual.merger.mlp.2", WIDTH, 4 * VISION)


def write_processor(folder: Path, processor: str) -> None:
    """Tokenizer, chat template and image settings of a Qwen-VL."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"filler{i}" for i in range(ORDINARY - len(alphabet)))]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": SPECIAL[1:],
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    pixels = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    colours = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": processor,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels | colours))


def write_config(folder: Path, model: str, architecture: str, vision: dict) -> None:
    config = {
        "architectures": [architecture],
        "model_type": model,
        "vocab_size": ROWS,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "torch_dtype": "float32",
        "vision_config": {"depth": LAYERS, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, **vision},
    }
    (folder / "config.json").write_text(json.dumps(config))


def save(tensors: dict[str, Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


def qwen2_vl(folder: Path) -> Path:
    """A checkpoint of Qwen2-VL with two blocks of width 32 on either side."""
    vision = {"embed_dim": VISION, "hidden_size": WIDTH, "mlp_ratio": 4, "in_chans": 3, "temporal_patch_size": 2}
    return _checkpoint(folder, "qwen2_vl", "Qwen2VL", vision, seed=0, newer=False)


def qwen2_5_vl(folder: Path) -> Path:
    """A checkpoint of Qwen2.5-VL, the kind of UnifiedReward-qwen, with two blocks of width 32 on either side."""
    vision = {"hidden_size": VISION, "intermediate_size": FFN, "out_hidden_size": WIDTH, "in_chans": 3}
    vision |= {"hidden_act": "silu", "window_size": 112, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    return _checkpoint(folder, "qwen2_5_vl", "Qwen2_5_VL", vision, seed=1, newer=True)


def _checkpoint(folder: Path, model: str, name: str, vision: dict, seed: int, newer: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, model, f"{name}ForConditionalGeneration", vision)
    write_processor(folder, f"{name}Processor")
    weights = Weights(seed)
    weights.vision_model(newer)
    weights.language_model(ROWS)
    save(weights.tensors, folder / "model.safetensors")
    return folder


def hpsv3(file: Path) -> Path:
    """HPSv3's weights: a Qwen2-VL's of its own, and the head, three linear layers with ReLU and dropout between."""
    weights = Weights(seed=2)
    weights.vision_model(newer=False)
    weights.language_model(HPSV3_ROWS)
    for place, outputs, inputs in ((0, 1024, WIDTH), (3, 16, 1024), (5, 2, 16)):
        weights.linear(f"rm_head.{place}", outputs, inputs)
    save(weights.tensors, file)
    return file
