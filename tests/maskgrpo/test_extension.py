"""What the hooks answer, without MaskGRPO: masks and shares against the objective's own average, written out."""

import re

import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.paths import CONFIGS
from htgrpo_ext.config import load_settings
from htgrpo_ext.core.objective import averaging_mask
from htgrpo_ext.core.views import Update, View
from htgrpo_ext.maskgrpo import hooks
from htgrpo_ext.maskgrpo.launch import published_problems


def update_of(counts: list[list[int]]) -> Update:
    target_BN = torch.tensor(counts)
    return Update(
        (View(torch.zeros_like(target_BN, dtype=torch.bool), target_BN),), torch.ones(target_BN.shape), "global"
    )


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5),
    st.data(),
)
def test_the_mask_gives_the_average_over_rollouts_or_over_tokens(counts, data):
    kept = data.draw(st.lists(st.booleans(), min_size=len(counts), max_size=len(counts)))
    values = data.draw(
        st.lists(st.lists(st.floats(-4, 4), min_size=4, max_size=4), min_size=len(counts), max_size=len(counts))
    )
    # A rollout without a target contributes nothing, but counts: its values are zero by its weight.
    values = [row if any(n) else [0.0] * 4 for row, n in zip(values, counts, strict=True)]
    rows = [(v, n) for v, n, keep in zip(values, counts, kept, strict=True) if keep]
    x_BN, kept_B = torch.tensor(values), torch.tensor(kept)
    for average in ("rollout", "token"):
        mask_BN = averaging_mask(update_of(counts), average, kept_B)
        if not rows:
            assert torch.equal(
                mask_BN, torch.ones(len(counts), 4)
            )  # nothing to divide by; the loss is zeroed elsewhere
            continue
        if average == "rollout":
            means = [sum(a * b for a, b in zip(v, n, strict=True)) / max(sum(n), 1) for v, n in rows]
            expected = sum(means) / len(means)
        else:
            total = sum(sum(n) for _, n in rows)
            if not total:
                continue
            expected = sum(a * b for v, n in rows for a, b in zip(v, n, strict=True)) / total
        torch.testing.assert_close((x_BN * mask_BN).sum() / mask_BN.sum(), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_hooks_hand_everything_back_where_there_is_no_extension():
    trainer, mask, gain = object(), torch.ones(2, 3, 4), torch.randn(1, 3, 4)
    assert hooks.image_tokens(trainer, 1024) == 1024
    assert hooks.update_index(trainer, 3) == 3
    assert hooks.loss_mask(trainer, 3, mask) is mask
    assert hooks.credit(trainer, 3, gain) is gain


def test_maskgrpo_as_published_with_an_evaluation_is_refused():
    files = [CONFIGS / "model/mmada.yaml", CONFIGS / "method/maskgrpo.yaml"]
    assert published_problems(load_settings(files)) == []
    benchmark = load_settings([CONFIGS / "model/micro.yaml", files[1]]).eval
    for setting in ("guidance_interval=[0.3, 1]", "reuse.refresh=2"):
        assert published_problems(load_settings(files, [f"rollout.{setting}"])) == [
            f"MaskGRPO as published has rollouts of its own; leave out rollout.{re.split('[=.]', setting)[0]}, or use "
            "METHOD=maskgrpo-fixed"
        ]
    [line] = published_problems(load_settings(files, ["loop.compile=default"]))
    assert line == "MaskGRPO as published is not compiled (loop.compile)"
    settings = load_settings(files).model_copy(update={"eval": benchmark})
    assert published_problems(settings) == [
        "MaskGRPO as published cannot be evaluated: its model class has no backbone of ours (eval)"
    ]
