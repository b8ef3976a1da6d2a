"""Policy gradients in parts: of one prompt's rollouts, and of the tokens of some ranks.

At theta = theta_old every ratio is 1, so the gradient of an objective is a sum over its tokens, and parts of it add up.
The KL penalty has no gradient where theta is the reference policy; it is left out.

B rollouts, N image tokens, U rows, M wanted positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from htgrpo_ext.core.estimator import ImageLogits, SharedForward
from htgrpo_ext.core.objective import Average, Judged, LogProbs, policy_objective
from htgrpo_ext.core.randomness import derived_generator
from htgrpo_ext.core.views import Prompts, Update

EXACT = 2**20  # weights whose gradient is kept as it is
SKETCHED = 262_139  # numbers that a larger gradient is brought to; a prime, so that no matrix is aligned with it
CLIP = 0.5  # at ratio 1 any clip has the same gradient


class Rollouts(NamedTuple):
    """What all gradients are taken on."""

    prompts: Prompts  # B rows
    codes_BN: Tensor
    judged: Judged


def guided_logits(image_logits: ImageLogits, nobody: Prompts, guidance: float) -> ImageLogits:
    """The logits that a sampler with classifier-free guidance draws from, (1+g) cond - g uncond, row by row.

    nobody  the one row that stands for no prompt
    """
    if guidance == 0:
        return image_logits

    def logits(prompts: Prompts, codes_UN: Tensor, wanted_UN: Tensor) -> Tensor:
        without_MV = image_logits(nobody.repeat(len(codes_UN)), codes_UN, wanted_UN)
        return (1 + guidance) * image_logits(prompts, codes_UN, wanted_UN) - guidance * without_MV

    return logits


def gradient_parts(
    forward: SharedForward,
    rollouts: Rollouts,
    update: Update,
    average: Average,
    rows: slice,
    buckets: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> list[list[Tensor]]:
    """What the tokens of some rollouts contribute to the gradient of J (Eq. 2, 12) at theta = theta_old, by bucket.

    Over all rows, and over buckets that divide the tokens, the parts add up to the gradient of the whole update. One
    view of at most `forward.batch_size` rollouts is in memory at a time.

    rows     the rollouts, of the B
    buckets  bool [B, N] each
    weights  what to differentiate by
    Returns  for each bucket a float32 tensor per weight
    """
    parts = [[torch.zeros_like(weight, dtype=torch.float32) for weight in weights] for _ in buckets]
    size = forward.batch_size.on(rollouts.codes_BN.device)
    for start in range(rows.start, rows.stop, size):
        some = slice(start, min(start + size, rows.stop))
        cut = update.rows(some)
        for view in cut.views:
            inside = [(view.target_BN > 0) & bucket_BN[some] for bucket_BN in buckets]
            asked = [b for b, inside_bN in enumerate(inside) if inside_bN.any()]
            if not asked:
                continue
            alone = Update((view,), cut.weight_BN, cut.stage)
            [logp_bN] = forward.log_probs(rollouts.prompts.rows(some), rollouts.codes_BN[some], [alone], "new")
            for b in asked:
                new_BN = torch.zeros_like(update.weight_BN)
                new_BN[some] = torch.where(inside[b], logp_bN, logp_bN.detach())
                scores = LogProbs(new_BN, new_BN.detach(), None)
                loss = policy_objective(scores, update, rollouts.judged, CLIP, 0.0, average).loss
                found = torch.autograd.grad(loss, weights, retain_graph=b != asked[-1], allow_unused=True)
                for part, gradient in zip(parts[b], found, strict=True):
                    if gradient is not None:
                        part.sub_(gradient)  # of J, the loss's negative
    return parts


class Sketch:
    """Brings gradients to vectors whose inner products are those of the gradients.

    Up to `EXACT` weights the vector is the gradient itself. A longer one becomes a count sketch (Charikar, Chen and
    Farach-Colton 2002): weight i is added to number i mod D with a random sign, D = `SKETCHED`. Its inner products are
    unbiased; their standard deviation is about |x| |y| / sqrt(D), 0.2 % of the two lengths.
    """

    def __init__(self, weights: Sequence[Tensor], seed: int, exact: int = EXACT, size: int = SKETCHED):
        self.count = sum(weight.numel() for weight in weights)
        self.size = self.count if self.count <= exact else size
        self._signs: list[Tensor] = []
        if self.size < self.count:
            for i, weight in enumerate(weights):
                generator = derived_generator(seed, "sketch", i)
                sign = torch.randint(0, 2, (weight.numel(),), dtype=torch.int8, generator=generator) * 2 - 1
                self._signs.append(sign.to(weight.device))

    def of(self, gradient: Sequence[Tensor]) -> Tensor:
        """float32 [size], on the CPU."""
        if not self._signs:
            return torch.cat([part.flatten() for part in gradient]).cpu()
        vector, first = torch.zeros(self.size, device=gradient[0].device), 0
        for part, sign in zip(gradient, self._signs, strict=True):
            signed = part.flatten() * sign
            ahead, behind = first % self.size, -(first + len(signed)) % self.size
            vector += torch.nn.functional.pad(signed, (ahead, behind)).view(-1, self.size).sum(0)
            first += len(signed)
        return vector.cpu()


@contextmanager
def stepped(weights: Sequence[Tensor], direction: Sequence[Tensor], rms: float) -> Iterator[None]:
    """Inside, the weights have moved along `direction` so far that the root mean square of their changes is `rms`."""
    before = [weight.detach().clone() for weight in weights]
    length = sum(float(part.cpu().double().square().sum()) for part in direction) ** 0.5
    scale = rms * sum(weight.numel() for weight in weights) ** 0.5 / length if length else 0.0
    with torch.no_grad():
        for weight, part in zip(weights, direction, strict=True):
            weight.add_((scale * part).to(weight.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
