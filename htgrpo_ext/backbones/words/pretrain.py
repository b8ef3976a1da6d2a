"""Training of a base checkpoint of the words world: the tokenizer's codebook, then masked-diffusion cross-entropy.

As for MaskGIT and MMaDA: the mask ratio is cos(pi/2 u), u uniform; the loss is the mean cross-entropy over masked
tokens. Captions are dropped with probability 0.1, so that the model is unconditional too (classifier-free guidance).

The rates depend on the step only, and what is saved is a running mean of the weights over about the last tenth of the
steps. So a checkpoint on the way is the same as one of a training of so many steps. A checkpoint can be trained
further: from its mean, with fresh optimizers, at the rates of the steps that follow.

B pictures, N tokens, V codes, D pixels of a patch.
"""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import cast

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from htgrpo_ext.backbones.words.backbone import WordsBackbone
from htgrpo_ext.backbones.words.model import WordsConfig, WordsModel
from htgrpo_ext.core.randomness import derived_generator, derived_seed
from htgrpo_ext.core.sampler import MASK, cosine_masked_share
from htgrpo_ext.errors import UserError
from htgrpo_ext.files import new_folder
from htgrpo_ext.words import tokenizer, world
from htgrpo_ext.words.drawing import draw

CAPTION_DROP = 0.1
BATCH_SIZE = 64
CODEBOOK_PICTURES = 4000  # half of each difficulty: both bases have the same codebook
CODEBOOK_ITERATIONS = 20
SIZE = 16_000_000  # bytes of a checkpoint, at most
FIXED_UNTIL, FREE_FROM = 250, 1750  # steps of a free base: it learns its letters at one place, then to find the place
WARMUP, FULL = 50, 800  # steps to the peak learning rate, and to the end of it


def training_pictures(rng: Random, free: float, count: int) -> tuple[list[str], Tensor]:
    """Captions and pictures uint8 [count, H, W]."""
    texts = world.training_texts(rng)
    chosen = [next(texts) for _ in range(count)]
    pictures = torch.from_numpy(np.stack([draw(text, rng, free) for text in chosen]))
    captions = [world.make_prompt("", text)["prompt"] for text in chosen]
    return ["" if rng.random() < CAPTION_DROP else caption for caption in captions], pictures


def make_codebook(seed: int) -> Tensor:
    """The tokenizer's codebook, float32 [V, D]."""
    rng, generator = Random(derived_seed(seed, "codebook pictures")), derived_generator(seed, "codebook")
    drawn = [training_pictures(rng, free, CODEBOOK_PICTURES // 2)[1] for free in (False, True)]
    patches_PD = tokenizer.to_patches(torch.cat(drawn)).flatten(0, 1)
    return tokenizer.fit(patches_PD, world.CODEBOOK_SIZE, CODEBOOK_ITERATIONS, generator)


def code_features(codebook_VD: Tensor) -> Tensor:
    """What is alike in like patches: pixels, brightness and their squares, each of mean 0 and unit spread. [V, F]"""
    level_V1 = codebook_VD.mean(1, keepdim=True) / 127.5 - 1
    pattern_VD = codebook_VD / 127.5 - 1 - level_V1
    energy_V1 = pattern_VD.square().mean(1, keepdim=True).sqrt()
    parts = [level_V1, level_V1.square(), energy_V1, pattern_VD]
    scaled = [(part - part.mean(0)) / part.std(0) / part.shape[1] ** 0.5 for part in parts]
    return torch.cat(scaled, dim=1)


def fresh_model(seed: int, codebook_VD: Tensor) -> WordsModel:
    """A model with random weights; embedding and head start as a random linear map of what patches look like.

    Like patches are then close to each other, and the model need not learn each of 512 codes alone. A part of its own,
    a tenth of the square of its length, tells each code from its neighbours.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, "weights"))  # the modules' initialisers take no generator
        model = WordsModel(WordsConfig())
    width, offset = model.config.hidden_size, model.config.image_offset
    generator = derived_generator(seed, "features")
    features_VF = code_features(codebook_VD)
    shared_VW = features_VF @ torch.randn(features_VF.shape[1], width, generator=generator) / 2
    own_VW = torch.randn(len(codebook_VD), width, generator=generator)
    vectors_VW = 0.9**0.5 * shared_VW + 0.1**0.5 * own_VW
    model.codebook.copy_(codebook_VD)
    model.embedding.weight.data[offset : offset + len(vectors_VW)] = 0.5 * vectors_VW
    model.lm_head.weight.data.copy_(0.5 * vectors_VW / width**0.5)
    return model


def freedom(step: int) -> float:
    """How free the pictures are that a free base is trained on; see `draw`."""
    return min(max(step - FIXED_UNTIL, 0) / (FREE_FROM - FIXED_UNTIL), 1.0)


def rate_factor(step: int, done: int = 0) -> float:
    """Share of the peak rate: linear warm-up from step `done` on, the peak, then down with the root of the step."""
    return min((step - done + 1) / WARMUP, 1.0, math.sqrt(FULL / (step + 1)))


def pretrain(out: Path, seed: int, steps: int, free: bool, further: Path | None = None, done: int = 0) -> None:
    """Make the codebook, train a WordsModel and save it to `out` (config.json, model.safetensors).

    steps    of the whole training
    further  a checkpoint to go on from, after `done` steps of its training; None: from scratch

    Raises UserError, before anything is made, if `out` is there and not empty, or cannot be written, if `further` is no
    such checkpoint, or if its steps do not fit.
    """
    if (further is None) != (done == 0) or done >= steps:
        raise UserError(f"after {done} steps of {steps} nothing can be trained further; --done goes with --further")
    trained = cast(WordsModel, WordsBackbone.load(further).model) if further else None
    with new_folder(out.expanduser(), SIZE) as folder, Progress() as progress:
        task = progress.add_task("the tokenizer's codebook", total=steps, completed=done)
        model = trained or fresh_model(seed, make_codebook(seed))
        for mean, loss in train(model, seed, steps, free, done):  # noqa: B007, the last is saved
            progress.update(task, advance=1, description=f"pretrain  loss {loss:.3f}")
        mean.save_pretrained(folder)


def train(model: WordsModel, seed: int, steps: int, free: bool, done: int = 0) -> Iterator[tuple[WordsModel, float]]:
    """Train the model in place, from step `done` to `steps`. Gives, after each step, the running mean of its weights
    (always the same object) and the running mean of the loss.

    Muon trains the blocks' matrices, AdamW the embedding, the head and the norms.
    """
    backbone, mean = WordsBackbone(model), copy.deepcopy(model)
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda taken: rate_factor(done + taken, done))
        for optimizer in optimizers
    ]
    more = (done,) if done else ()  # other pictures than those of the first steps
    rng = Random(derived_seed(seed, "pictures", "free" if free else "fixed", *more))
    noise = derived_generator(seed, "masks", *more)
    running = math.log(world.CODEBOOK_SIZE)
    for step in range(done, steps):
        captions, pictures_BHW = training_pictures(rng, freedom(step) if free else 0, BATCH_SIZE)
        codes_BN = tokenizer.encode(pictures_BHW, model.codebook)
        ratios = [cosine_masked_share(u) for u in torch.rand(BATCH_SIZE, generator=noise).tolist()]
        masked_BN = torch.rand(codes_BN.shape, generator=noise) < torch.tensor(ratios)[:, None]
        # Half the time on a CPU that has bfloat16. The fused attention's backward is slow in it.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            logits_MV = backbone.image_logits(
                backbone.encode_prompts(captions), codes_BN.masked_fill(masked_BN, MASK), masked_BN
            )
            loss = F.cross_entropy(logits_MV.float(), codes_BN[masked_BN])
            model.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in (*optimizers, *schedules):
            stepper.step()
        with torch.no_grad():
            for kept, now in zip(mean.parameters(), model.parameters(), strict=True):
                kept.lerp_(now, 10 / (step + 10))
        running += 0.02 * (loss.item() - running)
        yield mean, running
