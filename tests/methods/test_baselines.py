"""The methods HT-GRPO is compared with: random remasking and recorded trajectories."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.stubs import small_batch
from htgrpo_ext.core.contexts import remask, step_groups
from htgrpo_ext.core.views import same_contexts
from htgrpo_ext.settings import CHOICES

METHODS = CHOICES["method"]

K = 4


def plan(settings, small, count=K):
    return METHODS[settings["name"]](**settings).updates(small.batch, small.draws, count)


@pytest.mark.parametrize("name", ["maskgrpo-fixed", "unigrpo"])
def test_remasking_asks_about_exactly_the_masked_tokens(name):
    updates = plan({"name": name}, small_batch(N=40))
    for update in updates:
        (view,) = update.views
        assert torch.equal(view.target_BN, ~view.visible_BN)
    assert not same_contexts(updates[0], updates[1])
    assert (updates[0].target_BN & ~updates[1].target_BN).any()  # drawn anew: the larger does not hold the smaller


def test_remasking_shows_future_tokens_as_often_as_the_paper_says():
    """Proposition C.2 at m = 0.8: a token with f tokens after it sees one of them with probability 1 - 0.8^f."""
    small = small_batch(P=100, G=100, N=6)  # 10,000 rollouts: one sigma is at most 0.005
    rank_BN, visible_BN = small.batch.rank_BN, ~remask(small.batch, small.draws, 0, 0.8)
    for rank in range(1, 7):
        seen = (visible_BN & (rank_BN > rank)).any(-1).double().mean().item()
        assert seen == pytest.approx(1 - 0.8 ** (6 - rank), abs=0.025)


@pytest.mark.parametrize("name", ["htgrpo", "tracegrpo"])
def test_htgrpo_and_tracegrpo_never_show_future_tokens(name):
    small = small_batch(N=10, T=6)
    budget = {"budget": {"global": K}} if name == "htgrpo" else {}
    for update in plan({"name": name, **budget}, small):
        for view in update.views:
            last_visible_B1 = small.batch.rank_BN.masked_fill(~view.visible_BN, 0).max(-1, keepdim=True).values
            assert (small.batch.rank_BN > last_visible_B1)[view.target_BN].all()


@pytest.mark.parametrize("name", ["maskgrpo", "maskgrpo-fixed"])
def test_maskgrpo_masks_at_its_six_ratios(name):
    small = small_batch(N=20_000)
    found = [1 - update.views[0].visible_BN.double().mean().item() for update in plan({"name": name}, small, 6)]
    # c = 0.6 and K = 6, cut off at 0.999; 120,000 tokens: one sigma is 0.0014
    assert found == pytest.approx([0.66667, 0.73333, 0.8, 0.86667, 0.93333, 0.999], abs=0.007)
    assert found[-1] == pytest.approx(0.999, abs=5 * 0.0001)


def test_published_maskgrpo_counts_a_token_as_often_as_any_update_masks_it():
    small = small_batch(N=30)
    published, fixed = plan({"name": "maskgrpo"}, small), plan({"name": "maskgrpo-fixed"}, small)
    for b in range(6):
        for n in range(30):
            times = sum(not update.views[0].visible_BN[b, n] for update in published)
            assert [update.target_BN[b, n].item() for update in published] == [times] * K
    assert all(same_contexts(a, b) for a, b in zip(published, fixed, strict=True))  # the fault is in the targets
    assert any((a.target_BN != b.target_BN).any() for a, b in zip(published, fixed, strict=True))


def test_published_maskgrpo_walks_its_updates_by_micro_step():
    # Two micro-batches per optimizer step, K = 4: MaskGRPO trains 0, 1 | 2, 3 | 0, 1 | 2, 3
    def walk(name, A, count):
        method = METHODS[name](name=name, **({"budget": {"global": count}} if name == "htgrpo" else {}))
        return [[method.update_index(k, a, A, count) for a in range(A)] for k in range(count)]

    assert walk("maskgrpo", 2, 4) == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert [step[0] for step in walk("maskgrpo", 2, 6)] == [0, 2, 4, 0, 2, 4]  # facts C8: "buffer 0 uses 0,2,4 twice"
    assert {step[0] for step in walk("maskgrpo", 4, 6)} == {0, 4, 2}  # facts C8: "3 of 6"
    for name in set(METHODS) - {"maskgrpo"}:
        assert walk(name, 2, 4) == [[0, 0], [1, 1], [2, 2], [3, 3]]


def test_unigrpo_spaces_its_ratios_evenly_from_a_random_start():
    small = small_batch(P=8, G=5, N=10_000)
    masked_KB = torch.stack([(~u.views[0].visible_BN).double().mean(-1) for u in plan({"name": "unigrpo"}, small)])
    # one sigma of a rollout's share is 0.005 at most, of a difference 0.007
    assert (masked_KB.diff(dim=0) - 1 / K).abs().max() < 0.035
    start_B = masked_KB[0]
    assert start_B.max() < 1 / K + 0.02 and start_B.max() - start_B.min() > 0.15  # 40 draws from [0, 0.25)
    assert start_B.mean().item() == pytest.approx(1 / 8, abs=5 * 0.25 / 12**0.5 / 40**0.5)


def test_d1_masks_words_only_and_the_whole_image():
    small = small_batch(P=40, G=10, N=2)
    updates = plan({"name": "d1", "prompt_mask_rate": 0.15}, small)
    hidden_KBL = torch.stack([update.views[0].prompt_masked_BL for update in updates])
    words_BL = small.prompts.words_BL
    assert not hidden_KBL[:, ~words_BL].any()
    assert hidden_KBL[:, words_BL].double().mean().item() == pytest.approx(0.15, abs=0.026)  # 4,800 words
    assert not same_contexts(updates[0], updates[1])
    assert all((u.target_BN == 1).all() and not u.views[0].visible_BN.any() for u in updates)


step_rows = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 6), min_size=n, max_size=n), min_size=1, max_size=3)
)


@given(step_rows, st.integers(1, 4))
def test_step_groups_merge_neighbouring_steps_that_happened(rows, merged):
    for steps, found in zip(rows, step_groups(torch.tensor(rows, dtype=torch.int16), merged).tolist(), strict=True):
        happened = sorted(set(steps))
        bundles = [happened[i : i + merged] for i in range(0, len(happened), merged)]
        assert all(step in bundles[group] for step, group in zip(steps, found, strict=True))


@pytest.mark.parametrize("merged", [1, 2, 3])
def test_tracegrpo_scores_all_tokens_once_each_seeing_the_groups_before_its_own(merged):
    small = small_batch(N=10, T=6)
    for update in plan({"name": "tracegrpo", "merged_steps": merged}, small):
        assert (update.target_BN == 1).all()
        for view in update.views:
            for b, steps in enumerate(small.batch.unmask_step_BN.tolist()):
                asked = {steps[n] for n in view.target_BN[b].nonzero()[:, 0].tolist()}
                assert len(asked) <= merged
                if asked:
                    assert view.visible_BN[b].tolist() == [step < min(asked) for step in steps]


def test_steps_per_update_picks_that_many_of_the_groups_a_rollout_has():
    small = small_batch(P=4, G=6, N=4, T=6)  # 4 tokens in 6 steps: some rollouts have 2 groups, some 4
    group_BN = step_groups(small.batch.unmask_step_BN, 1)
    assert {len(row.unique()) for row in group_BN} >= {2, 4}
    updates = plan({"name": "tracegrpo", "steps_per_update": 2}, small, 30)
    for update in updates:
        for groups, chosen in zip(group_BN.tolist(), (update.target_BN > 0).tolist(), strict=True):
            picked = {g for g, yes in zip(groups, chosen, strict=True) if yes}
            assert len(picked) == 2
            assert chosen == [g in picked for g in groups]  # whole groups
    picked_KBN = torch.stack([update.target_BN for update in updates])
    assert (picked_KBN.sum(0) > 0).all()  # every group has its turn
