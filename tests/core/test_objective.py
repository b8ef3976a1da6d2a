"""The objective all methods share."""

import math
from math import exp, log
from statistics import mean, stdev

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.objectives import objective
from htgrpo_ext.core.objective import group_advantage, k3_divergence, mixed_advantage

LN2 = log(2)


def worked_case(**changes):
    """One prompt, three rollouts of four tokens, every number below chosen to be worked by hand.

    A = 2, -1, 0.5; weights 1.2 on tokens 0 and 3, 0.8 on tokens 1 and 2; eps = 0.2, beta = 0.1. On the support:

    rollout 0  ratio 1.5: min(1.5, 1.2) x 1.2 x 2 = 2.88   clipped high
               ratio 0.5: min(0.5, 0.8) x 0.8 x 2 = 0.80   below 1 - eps, but the min takes it: not clipped
               ratio 1.1:          1.1  x 1.2 x 2 = 2.64
    rollout 1  ratio 1.5: -max(1.5, 1.2) x 1.2 = -1.80     above 1 + eps, but the min takes it: not clipped
               ratio 0.5: -max(0.5, 0.8) x 0.8 = -0.64     clipped low
    rollout 2  ratio 0.9:  0.9 x 0.8 x 0.5     =  0.36

    exp(ref - new) is 1, 2, 0.5 in rollout 0: k3 = 0, 1 - ln 2, -0.5 + ln 2; 1, 1 in rollout 1; 2 in rollout 2.
    Outside the support stand a ratio and a reference that no result may show.
    """
    ratio_BN = torch.tensor([[1.5, 0.5, 9.0, 1.1], [1.5, 9.0, 0.5, 9.0], [9.0, 0.9, 9.0, 9.0]])
    reference_ratio_BN = torch.tensor([[1.0, 2.0, 7.0, 0.5], [1.0, 7.0, 1.0, 7.0], [7.0, 2.0, 7.0, 7.0]])
    target_BN = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 0]]).bool()
    new_BN = torch.tensor([[-1.0, -2.0, -0.5, -3.0]]).expand(3, 4)
    arguments = {
        "new_BN": new_BN,
        "old_BN": new_BN - ratio_BN.log(),
        "reference_BN": new_BN + reference_ratio_BN.log(),
        "advantage_B": torch.tensor([2.0, -1.0, 0.5]),
        "weight_BN": torch.tensor([[1.2, 0.8, 0.8, 1.2]]).expand(3, 4),
        "target_BN": target_BN,
        "clip_epsilon": 0.2,
        "kl_coefficient": 0.1,
    }
    return objective(**arguments | changes)


def test_every_number_of_the_worked_case():
    found = worked_case()
    gain = mean([(2.88 + 0.80 + 2.64) / 3, (-1.80 - 0.64) / 2, 0.36])
    kl = mean([(0 + (1 - LN2) + (LN2 - 0.5)) / 3, 0, 1 - LN2])
    assert found.loss.item() == pytest.approx(-gain + 0.1 * kl, abs=1e-6)
    assert found.kl.item() == pytest.approx(kl, abs=1e-6)
    assert found.ratio_mean.item() == pytest.approx(mean([3.1 / 3, 2.0 / 2, 0.9]), abs=1e-6)
    assert found.ratio_max.item() == pytest.approx(1.5)
    assert found.clip_high.item() == pytest.approx(mean([1 / 3, 0, 0]))
    assert found.clip_low.item() == pytest.approx(mean([0, 1 / 2, 0]))


def test_token_average_counts_tokens_alike():
    found = worked_case(average="token")
    gain = (2.88 + 0.80 + 2.64 - 1.80 - 0.64 + 0.36) / 6
    kl = (0.5 + 1 - LN2) / 6
    assert found.loss.item() == pytest.approx(-gain + 0.1 * kl, abs=1e-6)
    assert found.kl.item() == pytest.approx(kl, abs=1e-6)
    assert (found.clip_high.item(), found.clip_low.item()) == pytest.approx((1 / 6, 1 / 6))


def test_an_integer_target_counts_a_token_that_often():
    counts_BN = torch.tensor([[3, 1, 0, 1], [1, 0, 2, 0], [0, 4, 0, 0]])
    by_rollout, by_token = (worked_case(target_BN=counts_BN, average=a) for a in ("rollout", "token"))
    # KL and metrics aside: token 0 of rollout 0 thrice, token 2 of rollout 1 twice, token 1 of rollout 2 four times
    sums, sizes = [3 * 2.88 + 0.80 + 2.64, -1.80 - 2 * 0.64, 4 * 0.36], [5, 3, 4]
    kl_sums = [0 * 3 + 0.5, 0, 4 * (1 - LN2)]
    means = [mean(s / n for s, n in zip(parts, sizes, strict=True)) for parts in (sums, kl_sums)]
    assert by_rollout.loss.item() == pytest.approx(-means[0] + 0.1 * means[1], abs=1e-6)
    assert by_token.loss.item() == pytest.approx(-sum(sums) / 12 + 0.1 * sum(kl_sums) / 12, abs=1e-6)


def test_without_a_reference_there_is_no_kl():
    found = worked_case(reference_BN=None)
    assert found.kl.item() == 0
    assert found.loss.item() == pytest.approx(-mean([6.32 / 3, -1.22, 0.36]), abs=1e-6)


def test_the_weight_does_not_move_the_kl():
    plain, heavy = (worked_case(weight_BN=torch.full((3, 4), w), advantage_B=torch.zeros(3)) for w in (1.0, 50.0))
    assert plain.loss == heavy.loss and plain.kl == heavy.kl
    assert plain.loss.item() == pytest.approx(0.1 * mean([0.5 / 3, 0, 1 - LN2]), abs=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    # Distances of new - old from 0 that keep clear of the kinks at ln 0.8 = -0.22 and ln 1.2 = 0.18
    distance_BN = torch.tensor([[0.4, -0.5, 0.1, -0.1], [0.3, -0.4, 0.05, -0.15]], dtype=torch.float64)
    new_BN = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    old_BN = (new_BN - distance_BN).detach()
    reference_BN = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    weight_BN = torch.rand(2, 4, generator=generator, dtype=torch.float64) + 0.5
    advantage_B = torch.tensor([1.3, -0.7], dtype=torch.float64)
    for target_BN in (torch.ones(2, 4).bool(), torch.tensor([[1, 2, 0, 3], [0, 1, 1, 2]])):
        for average in ("rollout", "token"):
            assert torch.autograd.gradcheck(
                lambda new, t=target_BN, a=average: (
                    objective(new, old_BN, reference_BN, advantage_B, weight_BN, t, 0.2, 0.3, a).loss
                ),
                new_BN,
            )


def test_values_outside_the_support_reach_neither_loss_nor_gradient():
    inf = torch.inf
    new_BN = torch.tensor([[-1.0, 900.0, -inf, inf]], requires_grad=True)
    old_BN, reference_BN = torch.tensor([[-1.5, -900.0, 0.0, inf]]), torch.tensor([[-1.0, 900.0, inf, -inf]])
    one_B, one_BN = torch.ones(1), torch.ones(1, 4)
    target_BN = torch.tensor([[True, False, False, False]])
    found = objective(new_BN, old_BN, reference_BN, one_B, one_BN, target_BN, 0.9, 0.5)
    found.loss.backward()
    assert [x.item() for x in found] == pytest.approx([-exp(0.5), 0, exp(0.5), exp(0.5), 0, 0], abs=1e-6)
    assert new_BN.grad.tolist()[0] == pytest.approx([-exp(0.5), 0, 0, 0])  # d exp(new - old) = exp(new - old)


@given(st.floats(-1.5, 1.5), st.floats(-3, 3), st.floats(0.1, 4))
def test_a_positive_weight_factors_out_of_the_min(log_ratio, advantage, weight):
    def loss(w):
        tokens = (torch.full((1, 1), x, dtype=torch.float64) for x in (log_ratio, 0.0))
        a = torch.tensor([advantage], dtype=torch.float64)
        one = torch.ones(1, 1, dtype=torch.float64)
        return objective(*tokens, None, a, w * one, one.bool(), 0.2, 0.0).loss.item()

    assert loss(weight) == pytest.approx(weight * loss(1.0), abs=1e-9)


@given(st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6))
def test_advantages_are_standard_scores_within_the_group(rewards):
    advantage_B, flat_P = group_advantage(torch.tensor(rewards), 3)
    assert advantage_B.dtype == torch.float32
    for p, group in enumerate((rewards[:3], rewards[3:])):
        spread = stdev(group)  # of a sample
        expected = [(r - mean(group)) / (spread + 1e-5) for r in group]
        assert advantage_B[3 * p : 3 * p + 3].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        if not 0.5e-6 < spread < 2e-6:
            assert flat_P[p].item() == (spread < 1e-6)


@pytest.mark.parametrize("reward", [0.0, 0.1, 3.7, 10.3, -1234.567])
@pytest.mark.parametrize("rollouts", [2, 8, 9])
def test_a_group_of_equal_rewards_teaches_nothing(reward, rollouts):
    rewards = [reward] * rollouts + [float(g) for g in range(rollouts)]
    advantage_B, flat_P = group_advantage(torch.tensor(rewards), rollouts)
    assert advantage_B[:rollouts].tolist() == [0.0] * rollouts
    assert flat_P.tolist() == [True, False]


@given(st.floats(-8, 0), st.floats(-8, 0))
def test_k3_is_never_negative_and_zero_at_equality(new, reference):
    new, reference = (torch.tensor(x, dtype=torch.float64) for x in (new, reference))
    assert k3_divergence(new, reference) >= 0
    assert k3_divergence(new, new) == 0


def test_k3_is_the_divergence_on_average():
    # The mean over five codes, each as often as the new policy draws it: sum p k3 = sum p log(p / q)
    p, q = [0.4, 0.3, 0.2, 0.09, 0.01], [0.1, 0.2, 0.3, 0.25, 0.15]
    k3 = k3_divergence(torch.tensor(p).double().log(), torch.tensor(q).double().log()).tolist()
    divergence = sum(a * log(a / b) for a, b in zip(p, q, strict=True))
    assert sum(a * k for a, k in zip(p, k3, strict=True)) == pytest.approx(divergence, abs=1e-6)


# --- several rewards, and rewards that failed -----------------------------------------------------------------


def mixed(scores, weights, failed=(), G=2, mixing="sum"):
    score_BR = torch.tensor(scores, dtype=torch.float32)
    failed_B = torch.tensor([b in failed for b in range(len(scores))])
    return mixed_advantage(score_BR, torch.tensor(weights), failed_B, G, mixing)


def test_a_sum_is_what_the_weighted_sum_gives_alone():
    found = mixed([[1.0, 4.0], [2.0, 2.0], [0.0, 5.0], [3.0, 1.0]], [1.0, 0.5])
    assert found.reward_B.tolist() == [3.0, 3.0, 2.5, 3.5]
    assert torch.equal(found.advantage_B, group_advantage(found.reward_B, 2)[0])
    assert found.flat_P.tolist() == [True, False] and not found.failed_P.any()


def test_normalised_rewards_count_alike_whatever_their_scale_and_keep_apart_what_a_sum_confuses():
    """Group 1 differs in both rewards, group 2 in one: 2 against 1 standard scores, then unit spread over the batch.

    With two rollouts a standard score is +-1/sqrt(2): sums +-2/sqrt(2) and +-1/sqrt(2), so the batch's sample
    deviation is sqrt((2 + 2 + .5 + .5) / 3).
    """
    scores = [[0.0, 0.0], [1.0, 1000.0], [0.0, 7.0], [1.0, 7.0]]
    found = mixed(scores, [1.0, 1.0], mixing="normalise-then-sum")
    each = 1 / math.sqrt(2) / math.sqrt(5 / 3)
    assert found.advantage_B.tolist() == pytest.approx([-2 * each, 2 * each, -each, each], rel=1e-3)
    larger = mixed([[a * 50, b] for a, b in scores], [1.0, 1.0], mixing="normalise-then-sum")
    assert larger.advantage_B.tolist() == pytest.approx(found.advantage_B.tolist(), rel=1e-3)
    summed = mixed(scores, [1.0, 1.0]).advantage_B.abs()
    assert summed.tolist() == pytest.approx([1 / math.sqrt(2)] * 4, rel=1e-3)


@pytest.mark.parametrize("mixing", ["sum", "normalise-then-sum"])
def test_a_group_with_a_failed_rollout_has_no_advantage_and_leaves_the_others_theirs(mixing):
    scores = [[1.0, 3.0], [math.nan, 5.0], [0.0, 5.0], [3.0, 1.0], [2.0, 0.0], [2.5, 7.0]]
    found = mixed(scores, [1.0, 1.0], failed=[1], mixing=mixing)
    alone = mixed(scores[2:], [1.0, 1.0], mixing=mixing)
    assert found.advantage_B[:2].tolist() == [0.0, 0.0] and found.failed_P.tolist() == [True, False, False]
    assert torch.equal(found.advantage_B[2:], alone.advantage_B)
    nothing = mixed(scores[:2], [1.0, 1.0], failed=[0], mixing=mixing)
    assert nothing.advantage_B.tolist() == [0.0, 0.0] and not nothing.flat_P.any()


@pytest.mark.parametrize("average", ["rollout", "token"])
def test_a_dropped_rollout_gives_no_gradient_and_the_kept_ones_theirs_as_they_were(average):
    """Zero advantage and zero KL for the dropped row, in the whole batch's own average: that is J by hand."""
    generator = torch.Generator().manual_seed(5)
    new, old, reference = (torch.randn(3, 4, generator=generator) / 5 for _ in range(3))
    target = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0]]).bool()
    advantage, weight = torch.tensor([0.7, 0.0, -1.2]), torch.rand(3, 4, generator=generator) + 0.5
    kept = torch.tensor([True, False, True])

    def loss(new_BN, kept_B, beta):
        return objective(new_BN, old, reference, advantage, weight, target, 0.2, beta, average, kept_B)

    new.requires_grad_()
    gradient = torch.autograd.grad(loss(new, kept, 0.3).loss, new)[0]
    everything = torch.autograd.grad(loss(new, None, 0.3).loss, new)[0]
    assert (gradient[1] == 0).all() and (everything[1] != 0).any()
    torch.testing.assert_close(gradient[kept], everything[kept])
    odd = torch.where(kept[:, None], new, 1e4)  # what a dropped row holds is not read
    assert loss(odd, kept, 0.3).loss == loss(new, kept, 0.3).loss
    alone = objective(
        new[kept], old[kept], reference[kept], advantage[kept], weight[kept], target[kept], 0.2, 0.3, average
    )
    for name in ("kl", "ratio_mean", "ratio_max", "clip_low", "clip_high"):
        torch.testing.assert_close(getattr(loss(new, kept, 0.3), name), getattr(alone, name))
    assert loss(new, torch.zeros(3, dtype=torch.bool), 0.3).loss == 0
