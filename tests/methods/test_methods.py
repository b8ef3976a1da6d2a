"""What every method says about its updates, and what HT-GRPO says of its own."""

import pytest
import torch

from helpers.stubs import small_batch
from htgrpo_ext.core.views import same_contexts
from htgrpo_ext.settings import CHOICES

METHODS = CHOICES["method"]

K = 4
BUDGET = {"global": 1, "structure": 2, "refinement": 1}
SETTINGS = [
    {"name": "htgrpo", "budget": BUDGET},
    {"name": "htgrpo", "budget": BUDGET, "context": "reveal-structure"},
    {"name": "maskgrpo"},
    {"name": "maskgrpo-fixed"},
    {"name": "unigrpo"},
    {"name": "d1"},
    {"name": "tracegrpo"},
    {"name": "tracegrpo", "merged_steps": 3},
    {"name": "tracegrpo", "steps_per_update": 2},
]
every_method = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))


def plan(settings, small, count=K):
    return METHODS[settings["name"]](**settings).updates(small.batch, small.draws, count)


def test_these_are_all_the_methods():
    assert set(METHODS) == {s["name"] for s in SETTINGS}


@every_method
def test_k_updates_of_the_right_shape_and_each_token_in_one_view_at_most(settings):
    small = small_batch(N=12, T=6)
    updates = plan(settings, small)
    assert len(updates) == K
    for update in updates:
        assert update.weight_BN.shape == update.target_BN.shape == (6, 12)
        assert update.weight_BN.dtype == torch.float32
        for view in update.views:
            assert view.visible_BN.shape == view.target_BN.shape == (6, 12)
            assert view.visible_BN.dtype == torch.bool
        assert sum((view.target_BN > 0).int() for view in update.views).max() <= 1
        if settings["name"] != "maskgrpo":  # which asks about visible tokens too
            assert not any((view.visible_BN & (view.target_BN > 0)).any() for view in update.views)
        if settings["name"] != "htgrpo":
            assert (update.weight_BN == 1).all() and update.stage == "global"


@every_method
def test_a_rollouts_plan_does_not_depend_on_the_batch_it_is_in(settings):
    for seed in range(3):
        together = small_batch(P=3, G=2, T=6, seed=seed)
        whole = plan(settings, together)
        for place in range(3):
            mine = slice(2 * place, 2 * place + 2)
            draws = type(together.draws)(seed, 0, [place], 2)
            alone = together._replace(
                batch=type(together.batch)(*(t[mine] for t in together.batch[:3]), 3), draws=draws
            )
            for one, part in zip(whole, plan(settings, alone), strict=True):
                one = one.rows(mine)
                assert torch.equal(one.target_BN, part.target_BN) and torch.equal(one.weight_BN, part.weight_BN)
                for a, b in zip(one.views, part.views, strict=False):  # views of others' later steps stand at the end
                    assert torch.equal(a.visible_BN, b.visible_BN) and torch.equal(a.target_BN, b.target_BN)
                    assert a.prompt_masked_BL is b.prompt_masked_BL is None or torch.equal(
                        a.prompt_masked_BL, b.prompt_masked_BL
                    )


@every_method
def test_plans_repeat_and_leave_the_global_generator_alone(settings):
    state, small = torch.get_rng_state(), small_batch()
    first, again = plan(settings, small), plan(settings, small)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a.target_BN, b.target_BN) for a, b in zip(first, again, strict=True))
    assert all(same_contexts(a, b) for a, b in zip(first, again, strict=True))


def test_htgrpo_draws_annealed_supports_within_each_stage():
    small = small_batch(N=12, structure_count=5)
    budget = {"global": 2, "structure": 3, "refinement": 1}
    rates = {"structure": {"gamma_max": 0.8, "gamma_min": 0.2, "mode": "up"}}
    updates = plan({"name": "htgrpo", "budget": budget, "rates": rates}, small, 6)
    assert [u.stage for u in updates] == ["global"] * 2 + ["structure"] * 3 + ["refinement"]
    # global 12 x 1.0, 0.5; structure ceil of 5 x 0.2, 0.5, 0.8; refinement 7 x 1.0
    assert [u.target_BN.sum(-1).unique().tolist() for u in updates] == [[12], [6], [1], [3], [4], [7]]
    rank_BN = small.batch.rank_BN
    for update in updates:
        chosen = rank_BN[update.target_BN > 0]
        assert {"global": True, "structure": chosen.max() <= 5, "refinement": chosen.min() > 5}[update.stage]
        assert torch.equal(update.weight_BN, torch.where(rank_BN <= 5, 1.2, 0.8))
        assert not update.views[0].visible_BN.any() and len(update.views) == 1
        assert same_contexts(update, updates[0])
    assert len(updates[1].target_BN.unique(dim=0)) > 1  # not one support for all rollouts


def test_htgrpo_draws_every_update_anew():
    rates = {stage: {"gamma_max": 0.5} for stage in BUDGET}
    updates = plan({"name": "htgrpo", "budget": {"global": 4}, "rates": rates}, small_batch(N=40))
    assert len(torch.stack([u.target_BN for u in updates]).unique(dim=0)) == 4


def test_revealing_the_structure_splits_the_same_supports_over_two_contexts():
    small = small_batch(N=12, structure_count=5)
    masked, revealed = plan(SETTINGS[0], small), plan(SETTINGS[1], small)
    first_BN = small.batch.rank_BN <= 5
    for plain, update in zip(masked, revealed, strict=True):
        dark, lit = update.views
        assert torch.equal(plain.target_BN, update.target_BN)
        assert not dark.visible_BN.any() and not dark.target_BN[~first_BN].any()
        assert torch.equal(lit.visible_BN, first_BN) and not lit.target_BN[first_BN].any()
    assert same_contexts(revealed[0], revealed[3]) and not same_contexts(masked[0], revealed[0])


@pytest.mark.parametrize("budget", [{"global": 2}, {"global": 1, "refinement": 4}])
def test_a_budget_that_does_not_sum_is_a_problem(budget):
    found = METHODS["htgrpo"](name="htgrpo", budget=budget).problems(4, 64)
    assert found and all("method.budget" in line for line in found)
    assert not METHODS["htgrpo"](name="htgrpo", budget=BUDGET).problems(4, 64)
