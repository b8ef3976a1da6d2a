"""A model, a rollout batch and its noise, all small enough to check by brute force.

P prompts, G rollouts per prompt, B = P*G, N image tokens, V codebook, L prompt tokens, U rows.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from htgrpo_ext.core.order import generation_rank
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import MASK, Draw, draw_codes
from htgrpo_ext.core.views import Prompts, RolloutBatch, Update

MASK_ID = 9  # of a hidden prompt token
PAD, BOS = 0, 1


class StubModel(nn.Module):
    """Float64. Every position's logits depend on every visible token, on its place and on the prompt's words."""

    def __init__(self, num_tokens: int, codebook: int, width: int = 5, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.word, self.code, self.place = weight(10, width), weight(codebook + 1, width), weight(num_tokens, width)
        self.mix, self.head = weight(num_tokens, num_tokens), weight(width, codebook)
        self.rows: list[tuple[Tensor, Tensor]] = []  # prompt ids [L] and codes [N] of every row asked for

    def image_logits(self, prompts: Prompts, codes_UN: Tensor, wanted_UN: Tensor) -> Tensor:
        self.rows += zip(prompts.ids_BL, codes_UN, strict=True)
        order = torch.arange(1, prompts.ids_BL.shape[1] + 1)
        words_U = (self.word[prompts.ids_BL] * (prompts.attention_BL * order)[..., None]).sum(1, keepdim=True)
        canvas_UN = self.code[codes_UN + 1] + self.place
        mixed_UN = torch.tanh(torch.einsum("mn,und->umd", self.mix, canvas_UN) + words_U)
        return (mixed_UN @ self.head)[wanted_UN]


def drawing(logits: Callable[[Tensor], Tensor]) -> Draw:
    """Draws for a sampler from a function that gives the logits [M, V] of all masked positions, row-major."""

    def draw(codes_BN: Tensor, wanted_BN: Tensor, uniform_BN: Tensor, step: int):
        return draw_codes(logits(codes_BN)[wanted_BN[codes_BN == MASK]], uniform_BN[wanted_BN])

    return draw


class Small(NamedTuple):
    prompts: Prompts  # B rows
    codes_BN: Tensor
    batch: RolloutBatch
    draws: Draws


def small_batch(P=2, G=3, N=8, V=4, T=4, structure_count=3, first_prompt=0, seed=0) -> Small:
    """Rollouts as a sampler could have left them; prompt p is BOS, p + 2, 7, 8 with padding in front."""
    generator = torch.Generator().manual_seed(seed)
    places = range(first_prompt, first_prompt + P)
    ids_PL = torch.tensor([[PAD, BOS, p + 2, 7, 8] for p in places])
    prompts = Prompts(ids_PL, ids_PL != PAD, ids_PL > BOS).repeat(G)
    steps_BN = torch.randint(T, (P * G, N), generator=generator).to(torch.int16)
    codes_BN = torch.randint(V, (P * G, N), generator=generator)
    batch = RolloutBatch(steps_BN, generation_rank(steps_BN, "raster"), prompts.words_BL, structure_count)
    return Small(prompts, codes_BN, batch, Draws(seed, 0, places, G))


def naive_log_probs(model: StubModel, small: Small, updates: Sequence[Update]) -> list[Tensor]:
    """One forward per update, view and rollout, float64 throughout; targets one by one."""
    results = []
    for update in updates:
        table = [[torch.zeros((), dtype=torch.float64) for _ in row] for row in small.codes_BN]
        for view in update.views:
            for b, codes in enumerate(small.codes_BN.tolist()):
                canvas = [code if seen else MASK for code, seen in zip(codes, view.visible_BN[b], strict=True)]
                ids, attention, words = (t[b : b + 1].clone() for t in small.prompts)
                if view.prompt_masked_BL is not None:
                    for place in view.prompt_masked_BL[b].nonzero():
                        ids[0, place] = MASK_ID
                whole = torch.ones(1, len(codes), dtype=torch.bool)
                logits_NV = model.image_logits(Prompts(ids, attention, words), torch.tensor([canvas]), whole)
                for n in view.target_BN[b].nonzero()[:, 0].tolist():
                    probs_V = logits_NV[n].exp() / logits_NV[n].exp().sum()
                    table[b][n] = probs_V[codes[n]].log()
        results.append(torch.stack([torch.stack(row) for row in table]))
    return results
