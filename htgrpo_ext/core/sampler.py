"""Samplers of masked-diffusion image generators, recording when each token was unmasked.

A sampler calls `logits(codes_BN) -> [M, V]`: logits of the M still masked positions, row-major. It owns no
randomness: `uniform(step) -> [B, 2, N]` supplies two numbers in [0, 1) per token and step. A masked token is MASK in
`codes`. A finished token is never masked again, as in the samplers of MaskGRPO, MMaDA and Lumina-DiMOO.

B rollouts, N image tokens, V codebook, T steps, M masked positions.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MASK = -1
TINY = 1e-20  # keeps log(0) out of Gumbel noise

Logits = Callable[[Tensor], Tensor]
Uniform = Callable[[int], Tensor]


class Rollout(NamedTuple):
    """Finished images, when each token was unmasked, and the entropy of the model's prediction then (Eq. 21)."""

    codes_BN: Tensor  # int64 [B, N], in 0..V-1
    unmask_step_BN: Tensor  # int16 [B, N], in 0..T-1
    entropy_BN: Tensor  # float32 [B, N], entropy in nats of the distribution that each token was drawn from


def guided(conditional: Logits, unconditional: Logits, guidance: float) -> Logits:
    """Classifier-free guidance (1+g) cond - g uncond, as MMaDA and Lumina-DiMOO write it; g = 0 switches it off."""
    if guidance == 0:
        return conditional
    return lambda codes_BN: (1 + guidance) * conditional(codes_BN) - guidance * unconditional(codes_BN)


def cosine_masked_share(time: float) -> float:
    """Share of tokens still masked at a time in [0, 1]: cos(pi/2 time)."""
    return math.cos(math.pi / 2 * time)


def categorical(probs_MV: Tensor, uniform_M: Tensor) -> Tensor:
    """Draw one code per row by inverting the cumulative sum. int64 [M]"""
    cumulative_MV = probs_MV.cumsum(-1)
    # Scaled by the last entry, because rounding leaves it near 1, not at 1. The clamp is for u * total = total.
    points_M1 = (uniform_M * cumulative_MV[:, -1])[:, None]
    drawn_M = torch.searchsorted(cumulative_MV, points_M1, right=True)[:, 0]
    return drawn_M.clamp(max=probs_MV.shape[-1] - 1)


def _draw(logits: Logits, codes_BN: Tensor, uniform_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a code for every masked position. Returns it, its probability and the entropy, each [M], row-major."""
    logp_MV = logits(codes_BN).float().log_softmax(-1)
    probs_MV = logp_MV.exp()
    drawn_M = categorical(probs_MV, uniform_BN[codes_BN == MASK])
    return drawn_M, probs_MV.gather(1, drawn_M[:, None])[:, 0], torch.special.entr(probs_MV).sum(-1)


def _sample(shape: tuple[int, int], steps: int, device, decide: Callable) -> Rollout:
    """The loop that all samplers share (Eq. 1); `decide(step, codes)` gives (finished, code, entropy), each [M]."""
    if steps < 1:
        raise ValueError(f"sampler steps must be at least 1, not {steps}")
    codes_BN = torch.full(shape, MASK, dtype=torch.int64, device=device)
    unmask_step_BN = torch.full(shape, MASK, dtype=torch.int16, device=device)
    entropy_BN = torch.zeros(shape, device=device)
    for step in range(steps):
        masked_BN = codes_BN == MASK
        if not masked_BN.any():
            break
        finished_M, code_M, entropy_M = decide(step, codes_BN)
        finished_BN = masked_BN.masked_scatter(masked_BN, finished_M)
        codes_BN = codes_BN.masked_scatter(finished_BN, code_M[finished_M])
        entropy_BN = entropy_BN.masked_scatter(finished_BN, entropy_M[finished_M])
        unmask_step_BN = unmask_step_BN.masked_fill(finished_BN, step)
    return Rollout(codes_BN, unmask_step_BN, entropy_BN)


@torch.no_grad()
def emerge(logits: Logits, uniform: Uniform, shape: tuple[int, int], steps: int, device="cpu") -> Rollout:
    """MaskGRPO's sampler: which tokens are unmasked does not depend on their values.

    At each step every masked token is unmasked with probability 1 - k_s/k_t (k: the share still masked after and
    before the step). Its code is drawn from the model's distribution. The last step draws all that are left.
    """

    def decide(step: int, codes_BN: Tensor):
        token_noise_BN, unmask_noise_BN = uniform(step).to(device).unbind(1)
        stay = cosine_masked_share((step + 1) / steps) / cosine_masked_share(step / steps) if step < steps - 1 else 0.0
        code_M, _, entropy_M = _draw(logits, codes_BN, token_noise_BN)
        return unmask_noise_BN[codes_BN == MASK] >= stay, code_M, entropy_M

    return _sample(shape, steps, device, decide)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform noise in [0, 1), float32.

    Never in bfloat16: its largest number below 1 is 0.996, so noise would end at 5.5 and unlikely tokens never win.
    """
    return -(-(uniform + TINY).log() + TINY).log()


def _most_confident(confidence_M: Tensor, masked_BN: Tensor, stay_B: Tensor) -> Tensor:
    """All of each row's masked tokens but its `stay_B` least confident ones. bool [M]"""
    confidence_BN = torch.full(masked_BN.shape, torch.inf, device=masked_BN.device)
    confidence_BN = confidence_BN.masked_scatter(masked_BN, confidence_M)
    order_BN = confidence_BN.argsort(dim=-1, stable=True).argsort(-1)
    return (order_BN >= stay_B[:, None])[masked_BN]


def _by_confidence(
    logits: Logits,
    uniform: Uniform,
    shape: tuple[int, int],
    temperatures: list[float],
    last_waits: bool,
    device,
    masked_share: Callable[[float], float] = cosine_masked_share,
) -> Rollout:
    """MaskGIT's loop: draw every masked token, keep the most confident, leave the others masked.

    Confidence is the token's log-probability plus temperatures[step] x Gumbel noise. floor(N k_s) tokens stay masked,
    at least 1 and at most one fewer than now, and none after the last step. For a single token the two bounds
    disagree: with `last_waits` it stays masked until the last step.
    """
    steps = len(temperatures)

    def decide(step: int, codes_BN: Tensor):
        token_noise_BN, rank_noise_BN = uniform(step).to(device).unbind(1)
        masked_BN = codes_BN == MASK
        code_M, prob_M, entropy_M = _draw(logits, codes_BN, token_noise_BN)
        if step == steps - 1:
            return torch.ones_like(code_M, dtype=torch.bool), code_M, entropy_M
        confidence_M = prob_M.clamp(min=TINY).log() + temperatures[step] * gumbel(rank_noise_BN[masked_BN])
        fewer_B = masked_BN.sum(-1) - 1
        stay_B = torch.full_like(fewer_B, int(shape[1] * masked_share((step + 1) / steps)))
        stay_B = stay_B.minimum(fewer_B).clamp(min=1) if last_waits else stay_B.clamp(min=1).minimum(fewer_B)
        return _most_confident(confidence_M, masked_BN, stay_B), code_M, entropy_M

    return _sample(shape, steps, device, decide)


@torch.no_grad()
def maskgit(
    logits: Logits, uniform: Uniform, shape: tuple[int, int], steps: int, temperature: float = 1.0, device="cpu"
) -> Rollout:
    """MaskGIT's sampler as MMaDA runs it: each step keeps the most confident tokens.

    The temperature of the confidence noise anneals as in MMaDA: every step multiplies it by (1 - (step + 1)/T), so
    the factors compound.
    """
    temperatures = [temperature]
    for step in range(steps):
        temperatures.append(temperatures[-1] * (1 - (step + 1) / steps))
    return _by_confidence(logits, uniform, shape, temperatures[1:], last_waits=True, device=device)


@torch.no_grad()
def maskgit_constant(
    logits: Logits, uniform: Uniform, shape: tuple[int, int], steps: int, temperature: float = 1.0, device="cpu"
) -> Rollout:
    """MaskGIT's sampler as Lumina-DiMOO runs it: confidence noise of one temperature at every step.

    Lumina-DiMOO also divides the logits by that temperature. Here tokens are always drawn at temperature 1, from the
    distribution whose log-probabilities are trained. At its default, 1, there is no difference.
    """
    return _by_confidence(logits, uniform, shape, [temperature] * steps, last_waits=False, device=device)


def _float32_masked_share(time: float) -> float:
    """`cosine_masked_share` in float32, as AmusedScheduler computes it: just below 1/2 at two thirds of the steps."""
    return torch.cos(torch.tensor(time, dtype=torch.float32) * math.pi / 2).item()


@torch.no_grad()
def maskgit_amused(
    logits: Logits, uniform: Uniform, shape: tuple[int, int], steps: int, temperature: float = 2.0, device="cpu"
) -> Rollout:
    """MaskGIT's sampler as diffusers' AmusedScheduler runs it.

    The temperature of the confidence noise falls in a straight line from `temperature` to 0, which the last step has.
    """
    temperatures = [temperature * (1 - step / max(steps - 1, 1)) for step in range(steps)]
    share = _float32_masked_share
    return _by_confidence(logits, uniform, shape, temperatures, last_waits=True, device=device, masked_share=share)


SAMPLERS = {
    "emerge": emerge,
    "maskgit": maskgit,
    "maskgit-constant": maskgit_constant,
    "maskgit-amused": maskgit_amused,
}
