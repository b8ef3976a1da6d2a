"""Measures of an estimator against the exact policy gradient, and of what a law of tokens knows of the prompt.

X = 2P parts of a gradient: each of P prompts has rollouts in two independent halves, and the parts of the first half
come first. C prompts, M positions, V codebook.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


class Products(NamedTuple):
    """Inner products, float64 [X, X], of the parts of a method's gradient and of the exact one."""

    own_XX: Tensor  # the method's with each other
    mixed_XX: Tensor  # the method's (rows) with the exact one's
    exact_XX: Tensor

    def without(self, prompt: int) -> "Products":
        """The same without a prompt's two parts."""
        count = len(self.own_XX) // 2
        kept = [x for x in range(2 * count) if x % count != prompt]
        return Products(*(t[kept][:, kept] for t in self))


class Measures(NamedTuple):
    """NaN where a gradient is zero, or where noise leaves nothing to measure.

    cosine           with the exact gradient, on the same rollouts
    cosine_of_means  the same of the expected gradients over rollouts of these prompts; may leave [-1, 1] by noise
    norm_ratio       the method's length by the exact gradient's
    noise            share of the squared length that is variance over rollouts (and over the method's own draws)
    """

    cosine: float
    cosine_of_means: float
    norm_ratio: float
    noise: float


def products(own_XD: Tensor, exact_XD: Tensor) -> Products:
    """The inner products of parts, float [X, D] each."""
    own_XD, exact_XD = own_XD.double(), exact_XD.double()
    return Products(own_XD @ own_XD.T, own_XD @ exact_XD.T, exact_XD @ exact_XD.T)


def measures(products: Products) -> Measures:
    """Compare two gradients, m of a method and e exact, each the sum of its halves 1 and 2.

        cosine           <m, e> / (|m| |e|)
        cosine_of_means  (<m1, e2> + <m2, e1>) / 2 / sqrt(<m1, m2> <e1, e2>)
        noise            (|m1|^2 + |m2|^2 - 2 <m1, m2>) / |m|^2

    The halves are independent, so products across them are unbiased for products of expectations, and |m1 - m2|^2 is
    for the variance of m (Spearman 1904 corrects correlations for noise in this way).
    """
    own_22, mixed_22, exact_22 = (_by_half(t) for t in products)
    own, mixed, exact = (float(t.sum()) for t in (own_22, mixed_22, exact_22))
    across = float(mixed_22[0, 1] + mixed_22[1, 0]) / 2
    signal, exact_signal = float(own_22[0, 1]), float(exact_22[0, 1])
    return Measures(
        cosine=_ratio(mixed, math.sqrt(own * exact)),
        cosine_of_means=_ratio(across, math.sqrt(max(signal, 0.0) * max(exact_signal, 0.0))),
        norm_ratio=_ratio(math.sqrt(own), math.sqrt(exact)),
        noise=_ratio(own - 4 * signal, own),
    )


def _by_half(product_XX: Tensor) -> Tensor:
    """Sums over the parts of each half. [2, 2]"""
    count = len(product_XX) // 2
    return product_XX.view(2, count, 2, count).sum((1, 3))


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


def jackknife(products: Products) -> Measures:
    """Standard errors of the measures, by the jackknife over prompts; NaN for one prompt.

    sqrt((P-1)/P sum_p (m_p - mean)^2), m_p the measure without prompt p
    """
    count = len(products.own_XX) // 2
    if count < 2:
        return Measures(*[math.nan] * 4)
    left_P4 = torch.tensor([measures(products.without(p)) for p in range(count)], dtype=torch.float64)
    spread_4 = (left_P4 - left_P4.mean(0)).square().sum(0)
    return Measures(*(spread_4 * (count - 1) / count).sqrt().tolist())


def draw_variance(draws_RD: Tensor) -> float:
    """Share of the mean squared length of R gradients, float [R, D], that is their variance: 0 if all are equal."""
    draws_RD = draws_RD.double()
    variance = (draws_RD - draws_RD.mean(0)).square().sum() / (len(draws_RD) - 1)
    return _ratio(float(variance), float(draws_RD.square().sum(1).mean()))


class Information(NamedTuple):
    """In nats a token; see `prompt_information`."""

    information_marginal: float
    information_own: float
    share: float


def prompt_information(before: float, marginal: float, own: float) -> Information:
    """The share of what decides a token that the prompt alone decides, as the fully masked marginals have it.

    before    entropy of a token's fully masked law when the prompt is not known: H(mean_c p_c), prompts equally likely
    marginal  mean entropy of its fully masked law given the prompt: mean_c H(p_c)
    own       mean entropy of the law it is drawn from, given the prompt and its own step's context

        information_marginal = before - marginal = I(token; prompt)
        information_own      = before - own      = I(token; prompt and context)
        share                = information_marginal / information_own

    The first is a mutual information (Cover and Thomas, Elements of Information Theory, Eq. 2.43), here the
    Jensen-Shannon divergence of the prompts' laws (Lin 1991): 0 if the prompt does not matter. The second is one if the
    model's laws are those of one joint law; then the share is in [0, 1]. It is 1 if one step draws all tokens. 0 if
    nothing is known in either way.
    """
    return Information(
        before - marginal, before - own, _ratio(before - marginal, before - own) if own < before else 0.0
    )


def tails(log_ratio_M: Tensor, clip: float) -> dict[str, float | list[float]]:
    """Quantiles of log ratios, the largest absolute one, and the share of ratios outside [1 - clip, 1 + clip]."""
    if not len(log_ratio_M):
        return {"quantiles": [math.nan] * len(QUANTILES), "largest": math.nan, "outside": math.nan}
    log_ratio_M = log_ratio_M.double()
    outside_M = (log_ratio_M < math.log(1 - clip)) | (log_ratio_M > math.log(1 + clip))
    return {
        "quantiles": torch.quantile(log_ratio_M, torch.tensor(QUANTILES, dtype=torch.float64)).tolist(),
        "largest": float(log_ratio_M.abs().max()),
        "outside": float(outside_M.double().mean()),
    }


def rank_buckets(rank_BN: Tensor, count: int) -> list[Tensor]:
    """The tokens of `count` neighbouring parts of the generation order, as even as can be. bool [B, N] each"""
    tokens = rank_BN.shape[1]
    ends = [tokens * i // count for i in range(count + 1)]
    return [(rank_BN > low) & (rank_BN <= high) for low, high in zip(ends, ends[1:], strict=False)]
