"""Samplers of masked-diffusion image generators, recording when each token was unmasked.

A sampler calls `draw(codes_BN, wanted_BN, uniform_BN, step) -> Drawn`: codes drawn from the model's distributions at
the M wanted positions, row-major. What is not wanted is not computed; `core/drawing.py` says how. A sampler owns no
randomness: `uniform(step) -> [B, 2, N]` supplies two numbers in [0, 1) per token and step, on the CPU. A masked token
is MASK in `codes`. A finished token is never masked again, as in the samplers of MaskGRPO, MMaDA and Lumina-DiMOO.

B rollouts, N image tokens, V codebook, T steps, M wanted positions.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MASK = -1
TINY = 1e-20  # keeps log(0) out of Gumbel noise


class Drawn(NamedTuple):
    """Codes drawn from distributions, one for each of M wanted positions."""

    code_M: Tensor  # int64, in 0..V-1
    prob_M: Tensor  # float32, the code's probability
    entropy_M: Tensor  # float32, of the distribution, in nats


Draw = Callable[[Tensor, Tensor, Tensor, int], Drawn]  # codes, wanted (on any device), uniform noise, [B, N]; the step
Uniform = Callable[[int], Tensor]


class Rollout(NamedTuple):
    """Finished images, when each token was unmasked, and the entropy of the model's prediction then (Eq. 21)."""

    codes_BN: Tensor  # int64 [B, N], in 0..V-1
    unmask_step_BN: Tensor  # int16 [B, N], in 0..T-1
    entropy_BN: Tensor  # float32 [B, N], entropy in nats of the distribution that each token was drawn from


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (1+g) cond - g uncond of logits, as MMaDA and Lumina-DiMOO write it."""
    return (1 + guidance) * conditional - guidance * unconditional


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


def draw_codes(logits_MV: Tensor, uniform_M: Tensor) -> Drawn:
    """Draw a code from each row of logits at temperature 1, in float32."""
    probs_MV = logits_MV.float().log_softmax(-1).exp()
    drawn_M = categorical(probs_MV, uniform_M)
    return Drawn(drawn_M, probs_MV.gather(1, drawn_M[:, None])[:, 0], torch.special.entr(probs_MV).sum(-1))


def _steps(steps: int) -> range:
    if steps < 1:
        raise ValueError(f"sampler steps must be at least 1, not {steps}")
    return range(steps)


def _masked(shape: tuple[int, int], device) -> Rollout:
    """A rollout before its first step (Eq. 1)."""
    codes_BN = torch.full(shape, MASK, dtype=torch.int64, device=device)
    return Rollout(codes_BN, codes_BN.to(torch.int16), torch.zeros(shape, device=device))


def _unmask(rollout: Rollout, step: int, finished_BN: Tensor, code_BN: Tensor, entropy_BN: Tensor) -> Rollout:
    """The rollout with the finished tokens unmasked."""
    return Rollout(
        torch.where(finished_BN, code_BN, rollout.codes_BN),
        rollout.unmask_step_BN.masked_fill(finished_BN, step),
        torch.where(finished_BN, entropy_BN, rollout.entropy_BN),
    )


def appearance(uniform: Uniform, shape: tuple[int, int], steps: int) -> tuple[Tensor, Tensor]:
    """When each token appears under emerge: at each step a masked token does with probability 1 - k_s/k_t.

    k is the share still masked, after and before the step. The last step takes all that are left.

    Returns the step int16 [B, N], and the noise float32 [B, N] that the token is drawn with. No model is asked.
    """
    step_BN, noise_BN = torch.full(shape, MASK, dtype=torch.int16), torch.zeros(shape)
    for step in _steps(steps):
        token_noise_BN, unmask_noise_BN = uniform(step).unbind(1)
        stay = cosine_masked_share((step + 1) / steps) / cosine_masked_share(step / steps) if step < steps - 1 else 0.0
        now_BN = (step_BN == MASK) & (unmask_noise_BN >= stay)
        step_BN, noise_BN = step_BN.masked_fill(now_BN, step), torch.where(now_BN, token_noise_BN, noise_BN)
    return step_BN, noise_BN


@torch.no_grad()
def emerge(draw: Draw, uniform: Uniform, shape: tuple[int, int], steps: int, device="cpu") -> Rollout:
    """MaskGRPO's sampler: which tokens are unmasked does not depend on their values.

    So it is decided first, for all steps (`appearance`), and codes are drawn for the tokens that appear, not for all
    that are masked. Each is drawn from the model's distribution, given the tokens of earlier steps.
    """
    rollout, (appears_BN, noise_BN) = _masked(shape, device), appearance(uniform, shape, steps)
    noise_BN = noise_BN.to(device, non_blocking=True)
    for step in range(steps):
        now_BN = appears_BN == step  # on the CPU: what is wanted is known without waiting for the device
        if now_BN.any():
            drawn, finished_BN = draw(rollout.codes_BN, now_BN, noise_BN, step), now_BN.to(device, non_blocking=True)
            rollout = _unmask(rollout, step, finished_BN, *_at(finished_BN, drawn.code_M, drawn.entropy_M))
    return rollout


def _at(wanted_BN: Tensor, *values_M: Tensor) -> list[Tensor]:
    """Values of wanted positions at their places [B, N], and 0 elsewhere."""
    return [value_M.new_zeros(wanted_BN.shape).masked_scatter(wanted_BN, value_M) for value_M in values_M]


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform noise in [0, 1), float32.

    Never in bfloat16: its largest number below 1 is 0.996, so noise would end at 5.5 and unlikely tokens never win.
    """
    return -(-(uniform + TINY).log() + TINY).log()


def _most_confident(confidence_BN: Tensor, masked_BN: Tensor, stay_B: Tensor) -> Tensor:
    """All of each row's masked tokens but its `stay_B` least confident ones. bool [B, N]"""
    order_BN = torch.where(masked_BN, confidence_BN, torch.inf).argsort(dim=-1, stable=True).argsort(-1)
    return masked_BN & (order_BN >= stay_B[:, None])


def _by_confidence(
    draw: Draw,
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
    steps, rollout = len(temperatures), _masked(shape, device)
    for step in _steps(steps):
        masked_BN = rollout.codes_BN == MASK
        wanted_BN = masked_BN.cpu()  # one copy a step: the next forward needs to know its positions
        if not wanted_BN.any():
            break
        token_noise_BN, rank_noise_BN = uniform(step).to(device, non_blocking=True).unbind(1)
        drawn = draw(rollout.codes_BN, wanted_BN, token_noise_BN, step)
        code_BN, prob_BN, entropy_BN = _at(masked_BN, *drawn)
        finished_BN = masked_BN
        if step < steps - 1:
            confidence_BN = prob_BN.clamp(min=TINY).log() + temperatures[step] * gumbel(rank_noise_BN)
            fewer_B = masked_BN.sum(-1) - 1
            stay_B = torch.full_like(fewer_B, int(shape[1] * masked_share((step + 1) / steps)))
            stay_B = stay_B.minimum(fewer_B).clamp(min=1) if last_waits else stay_B.clamp(min=1).minimum(fewer_B)
            finished_BN = _most_confident(confidence_BN, masked_BN, stay_B)
        rollout = _unmask(rollout, step, finished_BN, code_BN, entropy_BN)
    return rollout


@torch.no_grad()
def maskgit(
    draw: Draw, uniform: Uniform, shape: tuple[int, int], steps: int, temperature: float = 1.0, device="cpu"
) -> Rollout:
    """MaskGIT's sampler as MMaDA runs it: each step keeps the most confident tokens.

    The temperature of the confidence noise anneals as in MMaDA: every step multiplies it by (1 - (step + 1)/T), so
    the factors compound.
    """
    temperatures = [temperature]
    for step in range(steps):
        temperatures.append(temperatures[-1] * (1 - (step + 1) / steps))
    return _by_confidence(draw, uniform, shape, temperatures[1:], last_waits=True, device=device)


@torch.no_grad()
def maskgit_constant(
    draw: Draw, uniform: Uniform, shape: tuple[int, int], steps: int, temperature: float = 1.0, device="cpu"
) -> Rollout:
    """MaskGIT's sampler as Lumina-DiMOO runs it: confidence noise of one temperature at every step.

    Lumina-DiMOO also divides the logits by that temperature. Here tokens are always drawn at temperature 1, from the
    distribution whose log-probabilities are trained. At its default, 1, there is no difference.
    """
    return _by_confidence(draw, uniform, shape, [temperature] * steps, last_waits=False, device=device)


def _float32_masked_share(time: float) -> float:
    """`cosine_masked_share` in float32, as AmusedScheduler computes it: just below 1/2 at two thirds of the steps."""
    return torch.cos(torch.tensor(time, dtype=torch.float32) * math.pi / 2).item()


@torch.no_grad()
def maskgit_amused(
    draw: Draw, uniform: Uniform, shape: tuple[int, int], steps: int, temperature: float = 2.0, device="cpu"
) -> Rollout:
    """MaskGIT's sampler as diffusers' AmusedScheduler runs it.

    The temperature of the confidence noise falls in a straight line from `temperature` to 0, which the last step has.
    """
    temperatures = [temperature * (1 - step / max(steps - 1, 1)) for step in range(steps)]
    share = _float32_masked_share
    return _by_confidence(draw, uniform, shape, temperatures, last_waits=True, device=device, masked_share=share)


SAMPLERS = {
    "emerge": emerge,
    "maskgit": maskgit,
    "maskgit-constant": maskgit_constant,
    "maskgit-amused": maskgit_amused,
}
