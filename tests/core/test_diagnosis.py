"""Measures of estimators against worked cases and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch

from htgrpo_ext.core.diagnosis import (
    QUANTILES,
    draw_variance,
    jackknife,
    measures,
    products,
    prompt_information,
    rank_buckets,
    tails,
)


def test_every_measure_of_a_worked_case():
    """One prompt, two halves. m = (3, 1) + (1, 3) = (4, 4), e = (2, 0) + (2, 3) = (4, 3).

    <m, e> = 28, |m| = sqrt 32, |e| = 5. Across halves: <m1, e2> = 9, <m2, e1> = 2, <m1, m2> = 6, <e1, e2> = 4.
    Noise: |m1 - m2|^2 = 8 of 32.
    """
    found = measures(products(torch.tensor([[3.0, 1], [1, 3]]), torch.tensor([[2.0, 0], [2, 3]])))
    assert found.cosine == pytest.approx(28 / (math.sqrt(32) * 5))
    assert found.cosine_of_means == pytest.approx(5.5 / math.sqrt(24))
    assert found.norm_ratio == pytest.approx(math.sqrt(32) / 5)
    assert found.noise == pytest.approx(8 / 32)


def test_equal_gradients_have_cosine_one_and_what_cannot_be_measured_is_nan():
    x_XD = torch.tensor([[1.0, 0, 2], [0, 1, 1], [1, 1, 0], [2, 0, 1]])
    same = measures(products(x_XD, 2 * x_XD))
    assert same[:3] == pytest.approx((1, 1, 0.5))
    zero = measures(products(0 * x_XD, x_XD))
    assert math.isnan(zero.cosine) and math.isnan(zero.cosine_of_means) and zero.norm_ratio == 0
    opposed = measures(products(torch.tensor([[1.0], [-0.5]]), torch.tensor([[1.0], [1]])))
    assert math.isnan(opposed.cosine_of_means)  # its halves disagree: no signal


def test_products_across_halves_and_noise_are_right_on_average():
    """Each half of m is (2, 1) +- (0, 3), of e (1, 1) +- (1, 0), by coins: over all outcomes, the exact averages."""
    across, noise, own = [], [], []
    for a, b, c, d in itertools.product((1, -1), repeat=4):
        m = torch.tensor([[2.0, 1 + 3 * a], [2, 1 + 3 * b]])
        e = torch.tensor([[1.0 + c, 1], [1 + d, 1]])
        found = products(m, e)
        across.append(float(found.mixed_XX[0, 1] + found.mixed_XX[1, 0]) / 2)
        own.append(float(found.own_XX.sum()))
        noise.append(measures(found).noise * own[-1])
    assert np.mean(across) == pytest.approx(2 * 1 + 1 * 1)
    assert np.mean(noise) == pytest.approx(9 + 9)  # the variances of the halves add up
    assert np.mean(own) == pytest.approx(4 * (4 + 1) + 18)


def test_the_jackknife_leaves_out_both_parts_of_a_prompt():
    """Three prompts: cosines without each from the vectors themselves."""
    generator = torch.Generator().manual_seed(0)
    m, e = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    left = []
    for p in range(3):
        kept = [x for x in range(6) if x % 3 != p]
        a, b = m[kept].sum(0), e[kept].sum(0)
        left.append(float(a @ b / (a.norm() * b.norm())))
    expected = math.sqrt(2 / 3 * sum((c - np.mean(left)) ** 2 for c in left))
    assert jackknife(products(m, e)).cosine == pytest.approx(expected)
    assert math.isnan(jackknife(products(m[:2], e[:2])).cosine)


def test_variance_over_draws_of_a_worked_case():
    """(1, 0), (0, 1), (1, 0): mean (2/3, 1/3), squared distances 2/9, 8/9, 2/9; over R - 1 = 2: 2/3 of length 1."""
    assert draw_variance(torch.tensor([[1.0, 0], [0, 1], [1, 0]])) == pytest.approx(2 / 3)
    assert draw_variance(torch.ones(3, 5)) == 0


def test_the_share_of_information_at_its_ends():
    """Two prompts, a token each: one-hot laws tell them apart by log 2; equal laws by nothing."""
    two, none = math.log(2), 0.0
    assert prompt_information(before=two, marginal=none, own=none) == pytest.approx((two, two, 1))
    assert prompt_information(before=two, marginal=two, own=none) == pytest.approx((0, two, 0))
    assert prompt_information(before=two, marginal=two, own=two) == (0, 0, 0)
    # Two equally likely tokens that must be equal: given the prompt half the entropy of four codes is left (log 2 of
    # log 4); the second token is certain after the first. So the context tells log 4 and the prompt log 2.
    assert prompt_information(before=2 * two, marginal=two, own=none).share == pytest.approx(0.5)


def test_tails_are_those_of_numpy():
    values = torch.randn(1001, generator=torch.Generator().manual_seed(1))
    found = tails(values, 0.2)
    np.testing.assert_allclose(found["quantiles"], np.quantile(values.double().numpy(), QUANTILES), rtol=1e-6)
    ratios = np.exp(values.double().numpy())
    assert found["outside"] == pytest.approx(((ratios < 0.8) | (ratios > 1.2)).mean())
    assert found["largest"] == pytest.approx(np.abs(values.double().numpy()).max())


def test_buckets_divide_the_generation_order():
    rank_BN = torch.tensor([[3, 1, 2, 5, 4, 7, 6], [7, 6, 5, 4, 3, 2, 1]], dtype=torch.int16)
    buckets = rank_buckets(rank_BN, 3)
    assert [rank_BN[0][bucket[0]].sort().values.tolist() for bucket in buckets] == [[1, 2], [3, 4], [5, 6, 7]]
    assert torch.equal(sum(bucket.long() for bucket in buckets), torch.ones(2, 7, dtype=torch.long))
