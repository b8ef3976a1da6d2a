"""The objective every method shares (paper Eq. 2, 11-13): a clipped, weighted surrogate less a KL penalty.

P prompts, G rollouts per prompt, B = P*G rollouts, N image tokens.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from htgrpo_ext.core.views import Update

ZERO_SPREAD = 1e-6  # below this standard deviation a group has no spread to learn from


def group_advantage(reward_B: Tensor, rollouts_per_prompt: int) -> tuple[Tensor, Tensor]:
    """Group-relative advantage A = (R - mean) / (std + 1e-5) (Eq. 14, 28), with the sample std, as in MaskGRPO.

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
    failed_P: Tensor  # bool, groups with a rollout that has no score


def mixed_advantage(
    score_BR: Tensor,
    weight_R: Tensor,
    failed_B: Tensor,
    rollouts_per_prompt: int,
    mixing: Literal["sum", "normalise-then-sum"],
) -> Advantages:
    """Mix several rewards into one advantage, over a whole rollout batch: the rollouts of all processes.

        sum                  the weighted sum, compared within its group
        normalise-then-sum   each reward compared within its group, then the weighted sum, divided by its standard
                             deviation over the scored rollouts (GDPO, arXiv 2601.05242). A reward with a small
                             spread counts as much as one with a large spread

    score_BR  float32 [B, R]; read where not failed
    weight_R  float32 [R]; weight x scale under "sum", which uses raw scores
    failed_B  bool [B], rollouts that some reward did not score; their whole group is left out
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


class LogProbs(NamedTuple):
    """Log-probabilities of one update's targets under three policies; float32 [B, N], read on the support only."""

    new_BN: Tensor  # pi_theta, with gradient
    old_BN: Tensor  # pi_old, which drew the rollouts
    reference_BN: Tensor | None  # pi_ref; None: no KL


@dataclass(frozen=True)
class Judged:
    """Rewards and advantages of rollouts."""

    reward_B: Tensor  # float32
    advantage_B: Tensor  # float32
    kept_B: Tensor  # bool, False in a group that was not scored whole

    def rows(self, rows: slice) -> "Judged":
        """The same for some of the rollouts."""
        return Judged(self.reward_B[rows], self.advantage_B[rows], self.kept_B[rows])


class Objective(NamedTuple):
    loss: Tensor  # scalar, to be minimised: -J
    kl: Tensor  # scalars from here on, detached, averaged over the support
    ratio_mean: Tensor
    ratio_max: Tensor
    clip_low: Tensor  # share of tokens clipped below 1 - eps, which happens where A < 0
    clip_high: Tensor  # share of tokens clipped above 1 + eps, which happens where A > 0


Average = Literal["rollout", "token"]


def policy_objective(
    log_probs: LogProbs,
    update: Update,
    judged: Judged,
    clip_epsilon: float,
    kl_coefficient: float,
    average: Average = "rollout",
) -> Objective:
    """The loss -J_k of update k (Eq. 2, 11, 12; GRPO's own, Eq. 26, is the case w = 1).

        ratio = pi_theta / pi_old of each target in its context   (Eq. 3, 13, 27)
        J = mean_g mean_{n in S_g} [ min(ratio w A, clip(ratio, 1-eps, 1+eps) w A) ] - beta KL

    The weight w multiplies the advantage A (Eq. 14), never the KL.

    update   its targets are the support set S, in which a token may count several times; its weights are w
    judged   advantages A. Rollouts that were not kept contribute neither advantage nor KL. Each kept one counts as
             much as if nothing had failed. Metrics are averages over the kept ones
    average  "rollout": each rollout counts the same, as above; "token": each token does (MaskGRPO). The two agree
             when all supports have one size
    """
    (new_BN, old_BN, reference_BN), kept_B = log_probs, judged.kept_B
    target_BN = update.target_BN
    count_BN = target_BN.float() * kept_B[:, None]
    share = count_BN.sum() / target_BN.float().sum().clamp(min=1) if average == "token" else kept_B.float().mean()
    # Replaced before exp, not after: outside the support a value may be infinite, and its gradient must be zero.
    new_BN, old_BN = (torch.where(count_BN > 0, logp_BN, 0.0) for logp_BN in (new_BN, old_BN))
    if reference_BN is not None:
        reference_BN = torch.where(count_BN > 0, reference_BN, 0.0)

    def mean(value_BN: Tensor) -> Tensor:
        total_BN = value_BN * count_BN
        if average == "token":
            return total_BN.sum() / count_BN.sum().clamp(min=1)
        return (total_BN.sum(-1) / count_BN.sum(-1).clamp(min=1)).sum() / kept_B.sum().clamp(min=1)

    ratio_BN = (new_BN - old_BN).exp()
    credit_BN = update.weight_BN * judged.advantage_B[:, None]
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


def averaging_mask(update: Update, average: Average, kept_B: Tensor) -> Tensor:
    """A mask m such that sum(m x) / sum(m) is the objective's average of x over the support. float32 [B, N]

    MaskGRPO's loop averages in this form. "token": m counts each token as often as it is a target; "rollout": each
    rollout's counts sum to one. A rollout without a target spreads its one over all tokens, where the weight is zero.

    kept_B  bool [B], rollouts that were scored; the others get 0. If none was, m is 1 everywhere
    """
    count_BN = update.target_BN.float()
    if average == "rollout":
        total_B1 = count_BN.sum(-1, keepdim=True)
        count_BN = torch.where(total_B1 > 0, count_BN / total_B1.clamp(min=1), 1.0 / count_BN.shape[-1])
    return count_BN * kept_B[:, None] if kept_B.any() else torch.ones_like(count_BN)


def kept_share(update: Update, average: Average, kept_B: Tensor) -> Tensor:
    """The share of the average that the kept rollouts make up: a scalar that multiplies a loss over them alone."""
    whole_BN = averaging_mask(update, average, torch.ones_like(kept_B))
    return (whole_BN * kept_B[:, None]).sum() / whole_BN.sum()
