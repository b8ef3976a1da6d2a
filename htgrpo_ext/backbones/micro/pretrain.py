"""Training of the base checkpoint: masked-diffusion cross-entropy on imperfect scenes of the micro world.

As for MaskGIT and MMaDA: the mask ratio is cos(pi/2 u), u uniform; the loss is the mean cross-entropy over masked
tokens. Captions are dropped with probability 0.1, so that the model is unconditional too (classifier-free guidance).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F

from htgrpo_ext.backbones.micro.backbone import MicroBackbone
from htgrpo_ext.backbones.micro.model import MicroConfig, MicroModel
from htgrpo_ext.core.randomness import derived_generator, derived_seed
from htgrpo_ext.core.sampler import MASK, cosine_masked_share
from htgrpo_ext.files import new_folder
from htgrpo_ext.micro import world

CAPTION_DROP = 0.1
SIZE = 5_000_000  # bytes of a checkpoint, at most


def training_scenes(seed: int, placement: str) -> Iterator[tuple[str, list[int]]]:
    """Endless pairs of caption and codes [64]: tasks equally likely, prompts of both splits, noise by CAPTION_NOISE."""
    rng = Random(derived_seed(seed, "scenes", placement))
    prompts = {task: world.all_prompts(task) for task in world.TASKS}
    while True:
        prompt = rng.choice(prompts[rng.choice(world.TASKS)])
        codes = world.draw_scene(prompt, rng, placement=placement)
        yield "" if rng.random() < CAPTION_DROP else prompt["prompt"], codes


def rate_factor(step: int, steps: int, warmup: int = 50) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def fresh_model(seed: int) -> MicroModel:
    """A model with random weights; embedding and head start as sums of one random vector per factor of a code.

    As in a real VQ codebook, similar codes are then close to each other. Without it the model learns the 360 object
    codes one by one, which took more than ten times as many steps.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "weights"))  # the modules' initialisers take no generator
        model = MicroModel(MicroConfig(codebook_size=world.CODEBOOK_SIZE))
    width, offset = model.config.hidden_size, model.config.image_offset
    generator = derived_generator(seed, "factors")
    vectors: dict[str, Tensor] = {}
    for code in range(world.CODEBOOK_SIZE):
        factors = world.code_factors(code)
        for factor in factors:
            if factor not in vectors:
                vectors[factor] = torch.randn(width, generator=generator)
        vector = torch.stack([vectors[factor] for factor in factors]).sum(0) / len(factors) ** 0.5
        model.embedding.weight.data[offset + code] = 0.5 * vector
        model.lm_head.weight.data[code] = 0.5 * vector / width**0.5
    return model


def pretrain(out: Path, seed: int, steps: int, batch_size: int = 64, placement: str = "canonical") -> None:
    """Train a MicroModel from scratch and save it to `out` (config.json, model.safetensors).

    Muon trains the blocks' matrices, AdamW the embedding, the head and the norms.

    Raises UserError, before anything is trained, if `out` is there and not empty, or cannot be written.
    """
    with new_folder(out.expanduser(), SIZE) as folder:
        train(fresh_model(seed), seed, steps, batch_size, placement).save_pretrained(folder)


def train(model: MicroModel, seed: int, steps: int, batch_size: int, placement: str) -> MicroModel:
    """Train the model in place, with a progress bar; see `pretrain`."""
    backbone = MicroBackbone(model)
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate_factor(step, steps)) for o in optimizers]
    scenes = training_scenes(seed, placement)
    noise = derived_generator(seed, "masks")
    running = math.log(world.CODEBOOK_SIZE)
    with Progress() as progress:
        task = progress.add_task("pretrain", total=steps)
        for _ in range(steps):
            captions, images = zip(*(next(scenes) for _ in range(batch_size)), strict=True)
            codes_BN = torch.tensor(images)
            ratios = [cosine_masked_share(u) for u in torch.rand(batch_size, generator=noise).tolist()]
            masked_BN = torch.rand(codes_BN.shape, generator=noise) < torch.tensor(ratios)[:, None]
            logits_MV = backbone.image_logits(
                backbone.encode_prompts(captions), codes_BN.masked_fill(masked_BN, MASK), masked_BN
            )
            loss = F.cross_entropy(logits_MV, codes_BN[masked_BN])
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper in (*optimizers, *schedules):
                stepper.step()
            running += 0.02 * (loss.item() - running)
            progress.update(task, advance=1, description=f"pretrain  loss {running:.3f}")
    return model
