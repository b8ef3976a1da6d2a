"""What tokens' laws are like in their own contexts and fully masked: entropy, information, log ratios.

P prompts, G rollouts per prompt and half, B = 2P*G rollouts, N image tokens, V codebook.
"""

import torch

from htgrpo_ext.core.diagnosis import Information, prompt_information, rank_buckets, tails
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.core.views import Update, View
from htgrpo_ext.workflow.estimators import Study, scored

BINS = 8  # parts of the generation order, at most


@torch.no_grad()
def token_laws(study: Study, update: Update, clip: float) -> dict:
    """Entropies, information and log ratios of the rollouts' tokens, by generation order and in all.

    update  the exact one: every token in its own step's context
    clip    ratios further than this from 1 count as outside

    All laws are the sampler's, with its guidance. See `core.diagnosis.prompt_information` for the information.
    """
    forward, rollouts, rank_BN = study.exact, study.rollouts, study.batch.rank_BN
    size, tokens = study.settings.rollout.rollouts_per_prompt, rank_BN.shape[1]
    count = study.groups // 2
    blank_1N = torch.full((1, tokens), MASK, dtype=torch.int64, device=rank_BN.device)
    mean_NV, entropies = torch.zeros(()), []
    for prompt in range(count):  # one law at a time: N x V numbers are many
        row = slice(prompt * size, prompt * size + 1)
        law_NV = forward.logits(rollouts.prompts.rows(row), blank_1N, blank_1N == MASK, "rollout").float().softmax(-1)
        entropies.append(torch.special.entr(law_NV).sum(-1))
        mean_NV = mean_NV + law_NV / count
    before_N = torch.special.entr(mean_NV).sum(-1)
    marginal_BN = torch.stack(entropies).repeat_interleave(size, 0).repeat(2, 1)
    own_BN = study.rollout.entropy_BN

    nothing_BN = rank_BN < 0
    masked = Update((View(nothing_BN, ~nothing_BN),), study.batch.plain_weight(), "global")
    log_ratio_BN = scored(forward, rollouts, masked, "old") - scored(forward, rollouts, update, "old")

    def of(some_BN: torch.Tensor) -> dict:
        before, marginal, own = (
            float(entropy_BN[some_BN].cpu().double().mean())
            for entropy_BN in (before_N.expand_as(own_BN), marginal_BN, own_BN)
        )
        known: Information = prompt_information(before, marginal, own)
        entropy = {"entropy_own": own, "entropy_marginal": marginal}
        return entropy | known._asdict() | {"log_ratio": tails(log_ratio_BN[some_BN].cpu(), clip)}

    bins = rank_buckets(rank_BN, min(BINS, tokens))
    return {"all": of(~nothing_BN), "by_rank": [of(bin_BN) for bin_BN in bins]}
