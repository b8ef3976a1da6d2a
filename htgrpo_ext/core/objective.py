"""The objective every method shares (paper Eq. 2, 11-13): a clipped, weighted surrogate less a KL penalty.

P prompts, G rollouts per prompt, B = P*G rollouts, N image tokens.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

ZERO_SPREAD = 1e-6  # a group whose rewards differ by less teaches nothing


def group_advantage(reward_B: Tensor, rollouts_per_prompt: int) -> tuple[Tensor, Tensor]:
    """A = (R - mean) / (std + 1e-5) within each prompt's group, sample std as MaskGRPO has it.

    reward_B  float [B], a prompt's rollouts side by side
    Returns   advantage float32 [B], and bool [P], True where a group has no spread
    """
    # In float64 the mean of equal float32 rewards is exact, and their advantage zero.
    reward_PG = reward_B.double().unflatten(0, (-1, rollouts_per_prompt))
    std_P1 = reward_PG.std(dim=1, keepdim=True)
    advantage_PG = (reward_PG - reward_PG.mean(dim=1, keepdim=True)) / (std_P1 + 1e-5)
    return advantage_PG.flatten().float(), std_P1[:, 0] < ZERO_SPREAD


class Advantages(NamedTuple):
    advantage_B: Tensor  # float32, zero in a failed group
    reward_B: Tensor  # float32, the weighted sum; zero in a failed group
    flat_P: Tensor  # bool, scored groups without spread
    failed_P: Tensor  # bool, groups of which some rollout has no score


def mixed_advantage(
    score_BR: Tensor,
    weight_R: Tensor,
    failed_B: Tensor,
    rollouts_per_prompt: int,
    mixing: Literal["sum", "normalise-then-sum"],
) -> Advantages:
    """Several rewards to one advantage, of a whole rollout batch: the rollouts of all processes.

        sum                  the weighted sum, compared within its group
        normalise-then-sum   each reward compared within its group, then the weighted sum, divided by its standard
                             deviation over the scored rollouts (GDPO, arXiv 2601.05242): a reward of small spread
                             counts as much as one of large

    score_BR  float32 [B, R]; read where not failed
    weight_R  float32 [R]; weight x scale under "sum", where scores are used as they are
    failed_B  bool [B], rollouts that some reward did not score. A group is compared whole or not at all
    """
    failed_P = failed_B.unflatten(0, (-1, rollouts_per_prompt)).any(1)
    kept_B = ~failed_P.repeat_interleave(rollouts_per_prompt)
    score_BR = torch.where(kept_B[:, None], score_BR, 0.0)
    reward_B = (score_BR * weight_R).sum(1)
    if mixing == "sum":
        advantage_B, flat_P = group_advantage(reward_B, rollouts_per_prompt)
        return Advantages(advantage_B, reward_B, flat_P & ~failed_P, failed_P)
    each = [group_advantage(score_B, rollouts_per_prompt) for score_B in score_BR.T]
    advantage_B = (torch.stack([advantage for advantage, _ in each], 1) * weight_R).sum(1)
    flat_P = torch.stack([flat for _, flat in each]).all(0)
    if kept_B.any():
        advantage_B = advantage_B / (advantage_B[kept_B].std() + 1e-5)
    return Advantages(advantage_B, reward_B, flat_P & ~failed_P, failed_P)


def k3_divergence(new: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 estimator of KL(new || reference) per token: exp(ref - new) - (ref - new) - 1, never negative."""
    difference = reference - new
    return difference.exp() - difference - 1


class Objective(NamedTuple):
    loss: Tensor  # scalar, to be minimised: -J
    kl: Tensor  # scalars from here on, detached, averaged over the support
    ratio_mean: Tensor
    ratio_max: Tensor
    clip_low: Tensor  # share of tokens whose ratio fell below 1 - eps where that matters (A < 0)
    clip_high: Tensor  # share whose ratio rose above 1 + eps where that matters (A > 0)


def policy_objective(
    new_BN: Tensor,
    old_BN: Tensor,
    reference_BN: Tensor | None,
    advantage_B: Tensor,
    weight_BN: Tensor,
    target_BN: Tensor,
    clip_epsilon: float,
    kl_coefficient: float,
    average: Literal["rollout", "token"] = "rollout",
    kept_B: Tensor | None = None,
) -> Objective:
    """-J_k of Eq. 11.

        J = mean_g mean_{n in S_g} [ min(ratio w A, clip(ratio, 1-eps, 1+eps) w A) ] - beta KL

    new_BN, old_BN, reference_BN  float32 log-probabilities; read on the support only. None: no KL
    target_BN                     bool or int, the support set; an int counts a token that often
    average                       "rollout": each rollout counts the same, as printed above; "token": each token
                                  does (MaskGRPO). Without distinction where all supports have one size
    kept_B                        bool [B], rollouts that were scored; None: all. The others have no part in J, neither
                                  by advantage nor by KL, and the kept ones count in it as much as they would have
                                  if nothing had failed. The metrics are averages over the kept ones
    The weight multiplies the advantage, never the KL.
    """
    if kept_B is None:
        kept_B = torch.ones_like(advantage_B, dtype=torch.bool)
    count_BN = target_BN.float() * kept_B[:, None]
    share = count_BN.sum() / target_BN.float().sum().clamp(min=1) if average == "token" else kept_B.float().mean()
    # Before exp, not after: outside the support a value may be anything, and its gradient must still be zero.
    new_BN, old_BN = (torch.where(count_BN > 0, logp_BN, 0.0) for logp_BN in (new_BN, old_BN))
    if reference_BN is not None:
        reference_BN = torch.where(count_BN > 0, reference_BN, 0.0)

    def mean(value_BN: Tensor) -> Tensor:
        total_BN = value_BN * count_BN
        if average == "token":
            return total_BN.sum() / count_BN.sum().clamp(min=1)
        return (total_BN.sum(-1) / count_BN.sum(-1).clamp(min=1)).sum() / kept_B.sum().clamp(min=1)

    ratio_BN = (new_BN - old_BN).exp()
    credit_BN = weight_BN * advantage_B[:, None]
    clipped_BN = ratio_BN.clamp(1 - clip_epsilon, 1 + clip_epsilon)
    gain_BN = torch.minimum(ratio_BN * credit_BN, clipped_BN * credit_BN)
    kl_BN = torch.zeros_like(new_BN) if reference_BN is None else k3_divergence(new_BN, reference_BN)
    with torch.no_grad():
        low_BN = (ratio_BN < 1 - clip_epsilon) & (credit_BN < 0)
        high_BN = (ratio_BN > 1 + clip_epsilon) & (credit_BN > 0)
        ratio_max = ratio_BN.masked_fill(count_BN == 0, 0.0).max()
    return Objective(
        loss=share * (kl_coefficient * mean(kl_BN) - mean(gain_BN)),
        kl=mean(kl_BN.detach()),
        ratio_mean=mean(ratio_BN.detach()),
        ratio_max=ratio_max,
        clip_low=mean(low_BN.float()),
        clip_high=mean(high_BN.float()),
    )
