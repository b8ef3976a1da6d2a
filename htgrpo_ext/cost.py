"""Memory and time of a training cycle, from the sizes of a model alone. Estimates: what is assumed stands beside it.

N image tokens, V codebook.
"""

from typing import NamedTuple

import torch
from torch import nn

from htgrpo_ext.errors import UserError
from htgrpo_ext.settings import LladaModelSection, Lora, RunSettings

FLOAT = 4  # bytes; of adapters, optimizer state, log-probabilities and the sampler's laws
# Tables [N, V] per image that the sampler holds at its peak: logits with and without the prompt, their guided sum,
# its logarithm, the law, and the cumulated law.
SAMPLER_TABLES = 6

# LLaDA-8B's published sizes, for a plan before anything is downloaded; MMaDA and Lumina-DiMOO are made from it.
LLADA_8B = dict(
    d_model=4096,
    n_heads=32,
    n_kv_heads=32,
    n_layers=32,
    mlp_hidden_size=12288,
    vocab_size=134656,
    embedding_size=134656,
    weight_tying=False,
)


class Device(NamedTuple):
    """Accelerators of one kind; `flops` is the maker's figure for dense bfloat16."""

    name: str
    count: int
    memory: int
    flops: float


UTILISATION = 0.4  # share of that figure that a forward reaches. Assumed, never measured here
DEVICES = (Device("8 x A100-80G", 8, 80 * 10**9, 312e12), Device("1 x H200", 1, 141 * 10**9, 989e12))


class Shape(NamedTuple):
    """The sizes that everything follows from. `width` and `ffn` are of a block; `element` is in bytes."""

    parameters: int  # of the base model
    in_blocks: int  # of them, in matrices that every position goes through
    trained: int  # parameters that are trained: the same, or the adapters'
    adapters: bool
    layers: int
    width: int
    ffn: int
    sequence: int  # positions of a row, padding included
    num_image_tokens: int
    codebook: int
    element: int  # of a weight of the base model, and of an activation
    recomputed: bool  # activation checkpointing

    def memory(self, rows: int, positions: int, batch_size: int) -> dict[str, int]:
        """Bytes by part, while `rows` are held for their backward, with logits at `positions` of them.

        batch_size  rows per forward, and so the rows of which a block is recomputed at a time
        """
        state = FLOAT if self.adapters else self.element
        per_block = (9 * self.width + 4 * self.ffn) * self.element
        if self.adapters and self.element < FLOAT:  # adapters read each projection's input once more, in float32
            per_block += (6 * self.width + self.ffn) * FLOAT
        kept = rows * self.layers * per_block
        if self.recomputed:  # every block's input, and one block as a whole
            kept = rows * self.layers * self.width * self.element + min(rows, batch_size) * per_block
        rounded = 0 if self.element == FLOAT else self.element
        return {
            "weights": self.parameters * self.element + (self.trained * FLOAT if self.adapters else 0),
            "gradients": self.trained * state,
            "AdamW's two moments": 2 * self.trained * state,
            "frozen reference copy": 0 if self.adapters else self.parameters * self.element,
            "logits": 2 * positions * self.codebook * (FLOAT + rounded),
            "activations": self.sequence * kept,
        }

    def rollout_memory(self, images: int) -> int:
        """Bytes of the sampler's laws, over all images sampled together."""
        return images * SAMPLER_TABLES * self.num_image_tokens * self.codebook * FLOAT

    def row_flops(self) -> float:
        """Of one row's forward: matrices, attention (queries by keys, weights by values), the head's codebook rows."""
        matrices = 2 * (self.in_blocks + self.trained * self.adapters) * self.sequence
        attention = 4 * self.sequence**2 * self.width * self.layers
        return matrices + attention + 2 * self.width * self.codebook * self.num_image_tokens

    def new_cost(self) -> int:
        """A row with gradient, in forwards: itself, the gradient of inputs, that of weights if they are trained, and
        the second forward that activation checkpointing takes."""
        return 2 + (not self.adapters) + self.recomputed


def adapter_parameters(model: nn.Module, lora: Lora) -> int:
    """Parameters of LoRA on the named projections; those of blocks, not a head that is called the same."""
    layers = [m for name, m in model.named_modules() if "blocks." in name and name.split(".")[-1] in lora.targets]
    return sum(lora.rank * (layer.in_features + layer.out_features) for layer in layers)


def shape_of(settings: RunSettings) -> tuple[Shape, str | None]:
    """The sizes of the configured model, built without storage; and where they are from, if not from the checkpoint.

    Raises UserError for a config.json that cannot be used.
    """
    section, source = settings.model, None
    if isinstance(section, LladaModelSection):
        from htgrpo_ext.backbones import lumina, mmada
        from htgrpo_ext.backbones.layout import LladaBackbone
        from htgrpo_ext.backbones.llada import LladaConfig, LladaModel, read_config

        try:
            config = read_config(section.checkpoint)
        except UserError:
            if section.checkpoint.exists():
                raise
            config, source = LladaConfig(**LLADA_8B), f"{section.checkpoint} is not there: LLaDA-8B's sizes"
        with torch.device("meta"):
            model = LladaModel(config)
        layers, width, ffn = config.n_layers, config.d_model, config.ffn_width
        block = mmada.image_block() if section.name == "mmada" else lumina.image_block(section.height, section.width)
        sequence = section.prompt_length + len(block.frame_I)
        codebook, element = LladaBackbone.codebook_size, getattr(torch, section.dtype).itemsize
        recomputed = section.activation_checkpointing
    else:
        from htgrpo_ext.micro import world
        from htgrpo_ext.micro.model import MicroConfig, MicroModel

        config = MicroConfig(codebook_size=world.CODEBOOK_SIZE)
        with torch.device("meta"):
            model = MicroModel(config)
        layers, width, ffn = config.num_layers, config.hidden_size, config.ffn_size
        sequence, codebook = config.prompt_length + section.num_image_tokens, config.codebook_size
        element, recomputed = FLOAT, False
    parameters = sum(p.numel() for p in model.parameters())
    linear = [m for name, m in model.named_modules() if "blocks." in name and isinstance(m, nn.Linear)]
    adapters = section.tuning == "lora"
    shape = Shape(
        parameters=parameters,
        in_blocks=sum(m.weight.numel() for m in linear),
        trained=adapter_parameters(model, section.lora) if adapters else parameters,
        adapters=adapters,
        layers=layers,
        width=width,
        ffn=ffn,
        sequence=sequence,
        num_image_tokens=section.num_image_tokens,
        codebook=codebook,
        element=element,
        recomputed=recomputed,
    )
    return shape, source
