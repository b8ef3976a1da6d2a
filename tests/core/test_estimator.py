"""Shared forwards against one forward per rollout and view, in float64."""

import pytest
import torch

from helpers.objectives import objective
from helpers.stubs import MASK_ID, StubModel, naive_log_probs, small_batch
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.core.views import Update, View
from htgrpo_ext.settings import CHOICES

METHODS = CHOICES["method"]

K = 4
BUDGET = {"global": 1, "structure": 2, "refinement": 1}
PLANS = {
    "htgrpo": {"name": "htgrpo", "budget": BUDGET},
    "reveal-structure": {"name": "htgrpo", "budget": BUDGET, "context": "reveal-structure"},
    "tracegrpo": {"name": "tracegrpo"},
    "tracegrpo merged": {"name": "tracegrpo", "merged_steps": 2},
    "agrpo": {"name": "tracegrpo", "steps_per_update": 2},
    "maskgrpo": {"name": "maskgrpo"},
    "maskgrpo-fixed": {"name": "maskgrpo-fixed"},
    "unigrpo": {"name": "unigrpo"},
    "d1": {"name": "d1", "prompt_mask_rate": 0.5},
}


def plan(name, small, count=K):
    settings = PLANS[name]
    return METHODS[settings["name"]](**settings).updates(small.batch, small.draws, count)


def shared(model, small, updates, batch_size=64):
    forward = SharedForward(model.image_logits, MASK_ID, batch_size)
    return forward.log_probs(small.prompts, small.codes_BN, updates, "new"), forward


def gradient(model, loss):
    parts = torch.autograd.grad(loss, [model.word, model.code, model.place, model.mix, model.head])
    return torch.cat([part.flatten() for part in parts])


def far(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("name", PLANS)
def test_shared_forward_gives_the_naive_values_and_gradient(name):
    model, small = StubModel(8, 4), small_batch()
    updates = plan(name, small)
    ours, (theirs) = shared(model, small, updates)[0], naive_log_probs(model, small, updates)
    assert all(logp_BN.dtype == torch.float32 for logp_BN in ours)
    coefficient_KBN = torch.randn(K, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = torch.stack(ours), torch.stack(theirs)
    assert far(ours.double(), theirs) < 1e-6
    assert torch.equal(ours == 0, theirs == 0)
    assert (
        far(gradient(model, (ours * coefficient_KBN).sum()), gradient(model, (theirs * coefficient_KBN).sum())) < 1e-6
    )


@pytest.mark.parametrize("name", PLANS)
def test_results_do_not_depend_on_the_forwards_batch_size(name):
    model, small = StubModel(8, 4), small_batch()
    updates = plan(name, small)
    for one, other in zip(*(shared(model, small, updates, size)[0] for size in (3, 64)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("P", "G"), [(1, 2), (3, 1), (2, 5)])
def test_htgrpo_computes_one_row_per_prompt_whatever_g_and_k(P, G):
    model, small = StubModel(8, 4), small_batch(P=P, G=G)
    updates = plan("htgrpo", small)
    for some in (updates, updates[:1], updates[1:3]):
        model.rows.clear()
        assert shared(model, small, some)[1].rows["new"] == P == len(model.rows)


def test_maskgrpo_computes_one_row_per_rollout_and_update():
    model, small = StubModel(24, 4), small_batch(N=24)  # 24 tokens: no two masks coincide
    updates = plan("maskgrpo-fixed", small)[:-1]  # but at the last ratio, 0.999, where all are masked
    assert [shared(model, small, [update])[1].rows["new"] for update in updates] == [6] * (K - 1)
    assert shared(model, small, updates)[1].rows["new"] == 6 * (K - 1)


def test_tracegrpo_computes_each_distinct_prompt_and_context_once():
    model, small = StubModel(8, 4), small_batch(T=6)  # 8 tokens in 6 steps: some are empty
    distinct = set()
    for b, (codes, steps) in enumerate(zip(small.codes_BN.tolist(), small.batch.unmask_step_BN.tolist(), strict=True)):
        for step in set(steps):
            seen = tuple(c if s < step else MASK for c, s in zip(codes, steps, strict=True))
            distinct.add((b // 3, seen))
    assert len(distinct) < 6 * 6
    assert shared(model, small, plan("tracegrpo", small))[1].rows["new"] == len(distinct) == len(model.rows)


def test_a_view_without_targets_costs_nothing():
    model, small = StubModel(8, 4), small_batch()
    nothing, everything = torch.zeros(6, 8).bool(), torch.ones(6, 8).bool()
    some_BN = everything.clone()
    some_BN[1:] = False
    for idle in (View(everything, nothing), View(some_BN, nothing)):
        update = Update((View(nothing, some_BN), idle), torch.ones(6, 8), "global")
        assert shared(model, small, [update])[1].rows["new"] == 1


def test_an_update_without_any_target_still_has_a_gradient_of_zero():
    model, small = StubModel(8, 4), small_batch()
    nothing = torch.zeros(6, 8).bool()
    (logp_BN,), _ = shared(model, small, [Update((View(nothing, nothing),), torch.ones(6, 8), "global")])
    assert torch.equal(logp_BN, torch.zeros(6, 8))
    assert not gradient(model, logp_BN.sum()).any()


def test_refinement_tokens_see_the_structure_and_nothing_else():
    model, small = StubModel(8, 4), small_batch(structure_count=3)
    (update,) = plan("reveal-structure", small)[3:]  # the refinement stage
    shared(model, small, [update])
    first_BN = small.batch.rank_BN <= 3
    expected = {(tuple(i.tolist()), tuple(c if f else MASK for c, f in zip(codes.tolist(), first, strict=True)))
                for i, codes, first in zip(small.prompts.ids_BL, small.codes_BN, first_BN, strict=True)}  # fmt: skip
    assert {(tuple(i.tolist()), tuple(c.tolist())) for i, c in model.rows} == expected
    model.rows.clear()
    shared(model, small, plan("reveal-structure", small)[1:2])  # the structure stage: fully masked
    assert all((codes == MASK).all() for _, codes in model.rows) and len(model.rows) == 2


def test_d1_hides_words_from_the_model():
    model, small = StubModel(8, 4), small_batch()
    shared(model, small, plan("d1", small))
    hidden = torch.stack([ids == MASK_ID for ids, _ in model.rows])
    assert hidden[:, 2:].any() and not hidden[:, :2].any()  # padding and the marker stay
    assert all((codes == MASK).all() for _, codes in model.rows)


ADVANTAGE = torch.tensor([1.2, -0.7, 0.4, -1.1, 0.3, 0.9])


def test_the_ratio_is_exactly_one_before_the_first_update_and_the_gradient_the_policy_gradient():
    model, small = StubModel(8, 4), small_batch()
    update = plan("htgrpo", small)[0]
    (new_BN,), _ = shared(model, small, [update])
    found = objective(new_BN, new_BN.detach(), new_BN.detach(), ADVANTAGE, update.weight_BN, update.target_BN, 0.2, 0.1)
    assert (found.ratio_mean, found.ratio_max, found.kl, found.clip_low, found.clip_high) == (1.0, 1.0, 0, 0, 0)
    (logp_BN,) = naive_log_probs(model, small, [update])
    rank_BN, total = small.batch.rank_BN.tolist(), 0.0
    for b in range(6):
        for n in range(8):  # full coverage: the first update of a stage that anneals down from 1
            total = total + ADVANTAGE[b].item() * (1.2 if rank_BN[b][n] <= 3 else 0.8) * logp_BN[b, n] / 8 / 6
    assert far(gradient(model, found.loss), gradient(model, -total)) < 1e-6


def test_one_global_stage_with_weight_one_is_the_plain_fully_masked_estimator():
    model, older, small = StubModel(8, 4), StubModel(8, 4), small_batch()
    with torch.no_grad():
        older.head += 0.2 * torch.randn(older.head.shape, generator=torch.Generator().manual_seed(3))
    method = METHODS["htgrpo"](name="htgrpo", budget={"global": 1}, rates={"global": {"gamma_min": 1.0}},
                               structure_weight=1.0, refinement_weight=1.0)  # fmt: skip
    (update,) = method.updates(small.batch, small.draws, 1)
    (new_BN,), (old_BN,) = (shared(m, small, [update])[0] for m in (model, older))
    loss = objective(new_BN, old_BN.detach(), None, ADVANTAGE, update.weight_BN, update.target_BN, 0.2, 0.0).loss
    everything = torch.ones(6, 8).bool()
    plain = Update((View(~everything, everything),), torch.ones(6, 8), "global")
    (naive_BN,), (naive_old_BN,) = (naive_log_probs(m, small, [plain]) for m in (model, older))
    ratio_BN, a_B1 = (naive_BN - naive_old_BN.detach()).exp(), ADVANTAGE.double()[:, None]
    # min(r A, clip(r) A) case by case: r A, but a constant beyond the bound that A makes worthwhile
    gain_BN = ratio_BN * a_B1
    gain_BN = torch.where((a_B1 > 0) & (ratio_BN > 1.2), 1.2 * a_B1, gain_BN)
    gain_BN = torch.where((a_B1 < 0) & (ratio_BN < 0.8), 0.8 * a_B1, gain_BN)
    assert (ratio_BN > 1.2).any() and (ratio_BN < 0.8).any()
    assert loss.item() == pytest.approx(-gain_BN.mean().item(), rel=1e-6)
    assert far(gradient(model, loss), gradient(model, -gain_BN.mean())) < 1e-6
