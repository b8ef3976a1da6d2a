"""Draw docs/words.png and print how often RapidOCR reads the words of drawn, reconstructed and painted pictures.

Arguments: FIGURE, the checkpoints of the fixed and of the free base, and the number of held-out words.
"""

import sys
from pathlib import Path
from random import Random

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from htgrpo_ext.backbones.words.backbone import WordsBackbone
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.rewards.scorers.ocr import Scorer
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.rollouts.settings import Sampling
from htgrpo_ext.words import tokenizer, world
from htgrpo_ext.words.drawing import draw

SHOWN = 8  # columns
SAMPLING = Sampling(sampler="emerge", steps=12, guidance=0.0, temperature=1.0)


def pictures(backbone: WordsBackbone, prompts: list[dict], free: bool) -> dict[str, Tensor]:
    """Grey levels [B, H, W] of the prompts' words: drawn, after the tokenizer, and as the base paints them."""
    rng = Random("figure")
    drawn = torch.from_numpy(np.stack([draw(prompt["text"], rng, free) for prompt in prompts])).float()
    codes_BN = tokenizer.encode(drawn, backbone.codebook)
    forward = SharedForward(backbone.image_logits, backbone.mask_id, 128)
    encoded = backbone.encode_prompts([prompt["prompt"] for prompt in prompts])
    painted = generate(backbone, forward, encoded, Draws(1000, "figure", range(len(prompts)), 1), SAMPLING)
    kinds = {"drawn": drawn, "reconstructed": tokenizer.decode(codes_BN, backbone.codebook)}
    return kinds | {"painted by the base": tokenizer.decode(painted.codes_BN, backbone.codebook)}


def main(target: str, fixed: str, free: str, count: str) -> None:
    held_out = world.split_prompts(world.MOST_HELD_OUT)[1]
    prompts = [held_out[i * 67 % len(held_out)] for i in range(int(count))]  # of all lengths, none twice
    scorer = Scorer(torch.device("cpu"), detection=False)
    rows = []
    for difficulty, checkpoint in (("fixed", fixed), ("free", free)):
        backbone = WordsBackbone.load(Path(checkpoint), frozen=True)
        for kind, levels_BHW in pictures(backbone, prompts, difficulty == "free").items():
            coloured = [levels.to(torch.uint8).expand(3, -1, -1) for levels in levels_BHW]
            scores = {name: sum(each) / len(each) for name, each in scorer.score(prompts, coloured).items()}
            print(f"{difficulty}, {kind}: exact {scores['ocr-exact']:.3f}, similarity {scores['ocr']:.3f}", flush=True)
            rows.append((f"{difficulty}\n{kind}", levels_BHW[:SHOWN]))
    figure = Figure(figsize=(11, 4), layout="constrained", dpi=110)
    for axes, (label, levels_BHW) in zip(figure.subplots(len(rows), 1), rows, strict=True):
        framed = torch.nn.functional.pad(levels_BHW, (2, 2, 2, 2), value=255)
        axes.imshow(torch.cat(list(framed), dim=1), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    figure.savefig(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
