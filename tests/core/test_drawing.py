"""Draws inside batches, against draws from one table of all images, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.stubs import MASK_ID, StubModel, drawing, small_batch
from htgrpo_ext.core import drawing as module
from htgrpo_ext.core.drawing import Drawing
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.sampler import MASK, SAMPLERS
from htgrpo_ext.core.views import Prompts

P, G, N, V = 3, 4, 8, 4
B = P * G
NOBODY = Prompts(torch.tensor([[0, 0, 0, 1, 2]]), torch.tensor([[0, 0, 0, 1, 1]]).bool(), torch.zeros(1, 5).bool())


def all_at_once(model, prompts, guidance, guided_steps=range(5)):
    """Every row on its own, all masked positions, one table: what a rollout computed before it was made faster."""

    def logits(codes_BN, guidance):
        def of(rows):
            each = [Prompts(*(t[b : b + 1] for t in rows)) for b in range(len(codes_BN))]
            parts = [model.image_logits(e, c[None], c[None] == MASK) for e, c in zip(each, codes_BN, strict=True)]
            return torch.cat(parts).float()

        conditional = of(prompts)
        return (1 + guidance) * conditional - guidance * of(NOBODY.repeat(B)) if guidance else conditional

    def draw(codes_BN, wanted_BN, uniform_BN, step):
        now = guidance if step in guided_steps else 0
        return drawing(lambda codes: logits(codes, now))(codes_BN, wanted_BN, uniform_BN, step)

    return draw


def noise(seed):
    return lambda step: torch.rand(B, 2, N, generator=torch.Generator().manual_seed(100 * seed + step))


@pytest.mark.parametrize("guidance", [0, 3.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("at_once", [V, 2**21])
def test_rollouts_are_those_of_one_table(sampler, guidance, batch_size, at_once, monkeypatch):
    monkeypatch.setattr(module, "DRAWN_AT_ONCE", at_once)  # a position at a time, or all
    model, prompts = StubModel(N, V), small_batch(P=P, G=G).prompts
    if sampler == "emerge":
        prompts = prompts.rows(torch.tensor([0, 5, 1, 4, 8, 2, 9, 3, 6, 10, 7, 11]))  # not side by side
    forward = SharedForward(model.image_logits, MASK_ID, batch_size)
    with torch.no_grad():
        ours = SAMPLERS[sampler](Drawing(forward, prompts, NOBODY, guidance), noise(3), (B, N), 5)
        theirs = SAMPLERS[sampler](all_at_once(model, prompts, guidance), noise(3), (B, N), 5)
    assert torch.equal(ours.codes_BN, theirs.codes_BN) and torch.equal(ours.unmask_step_BN, theirs.unmask_step_BN)
    torch.testing.assert_close(ours.entropy_BN, theirs.entropy_BN, atol=1e-6, rtol=0)


@given(st.integers(0, 10_000), st.sampled_from([0, 2.0]))
def test_any_order_of_wanted_positions_gives_those_of_one_table(seed, guidance):
    """Rows may begin late, or be left out; they share a forward only while nothing of them is drawn."""
    model, prompts = StubModel(N, V), small_batch(P=P, G=G).prompts
    generator = torch.Generator().manual_seed(seed)
    forward = SharedForward(model.image_logits, MASK_ID, 5)
    ours, theirs = Drawing(forward, prompts, NOBODY, guidance), all_at_once(model, prompts, guidance)
    codes_BN = torch.full((B, N), MASK)
    with torch.no_grad():
        for step in range(3):
            wanted_BN = (codes_BN == MASK) & (torch.rand(B, N, generator=generator) < 0.1)
            wanted_BN[0, (codes_BN[0] == MASK).nonzero()[:1, 0]] = True  # a sampler asks for at least one
            uniform_BN = torch.rand(B, N, generator=generator)
            found, expected = (draw(codes_BN, wanted_BN, uniform_BN, step) for draw in (ours, theirs))
            assert torch.equal(found.code_M, expected.code_M)
            torch.testing.assert_close(found.prob_M, expected.prob_M, atol=1e-6, rtol=0)
            codes_BN = codes_BN.masked_scatter(wanted_BN, found.code_M)


def rows_of(forward, prompts, guidance, steps=1):
    """Rows computed by a sampler that draws every token of every image in each of the steps."""
    draw, codes_BN = Drawing(forward, prompts, NOBODY, guidance), torch.full((B, N), MASK)
    for step in range(steps):
        wanted_BN = torch.zeros(B, N, dtype=torch.bool)
        wanted_BN[:, step] = True
        codes_BN = codes_BN.masked_scatter(wanted_BN, draw(codes_BN, wanted_BN, torch.rand(B, N), step).code_M)
    return forward.rows["rollout"]


@torch.no_grad()
def test_the_first_step_is_a_row_a_prompt_and_the_unconditional_one_a_row_a_policy():
    model, prompts = StubModel(N, V), small_batch(P=P, G=G).prompts
    forward = SharedForward(model.image_logits, MASK_ID, 64)
    assert rows_of(forward, prompts, 3.5) == P + 1
    assert rows_of(forward, prompts, 3.5) == 2 * P + 1  # another micro-batch: the unconditional row is kept
    forward.start_cycle()
    before = model.head.clone()
    model.head += 1.0 * torch.randn(model.head.shape, generator=torch.Generator().manual_seed(1))
    assert rows_of(forward, prompts, 3.5) == P + 1  # a new policy: it is computed again
    fresh = model.image_logits(NOBODY, torch.full((1, N), MASK), torch.ones(1, N, dtype=torch.bool))
    assert torch.equal(forward.first_logits(NOBODY, N), fresh)
    model.head.copy_(before)
    forward.start_cycle()
    assert rows_of(forward, prompts, 3.5, steps=3) == P + 1 + 2 * 2 * B


@torch.no_grad()
def test_only_wanted_positions_are_computed_and_images_without_any_have_no_row():
    model, prompts = StubModel(N, V), small_batch(P=P, G=G).prompts
    asked = []

    def watched(prompts, codes_UN, wanted_UN):
        asked.append(wanted_UN)
        return model.image_logits(prompts, codes_UN, wanted_UN)

    wanted_BN = torch.zeros(B, N, dtype=torch.bool)
    wanted_BN[0, 3] = wanted_BN[1, 5] = wanted_BN[G, 2] = True  # two images of the first prompt, one of the second
    draw = Drawing(SharedForward(watched, MASK_ID, 64), prompts, NOBODY, 0)
    draw(torch.full((B, N), MASK), wanted_BN, torch.rand(B, N), 0)
    assert [wanted_UN.nonzero().tolist() for wanted_UN in asked] == [[[0, 3], [0, 5], [1, 2]]]


@torch.no_grad()
def test_a_batch_is_of_neighbours_in_length():
    lengths = []

    def watched(prompts, codes_UN, wanted_UN):
        lengths.append(prompts.attention_BL.sum(-1).tolist())
        return torch.zeros(int(wanted_UN.sum()), V)

    attention_BL = torch.ones(B, 6, dtype=torch.bool)
    for b in range(B):
        attention_BL[b, : b % 3] = False
    prompts = Prompts(torch.arange(B * 6).view(B, 6), attention_BL, attention_BL)
    draw = Drawing(SharedForward(watched, MASK_ID, 4), prompts, NOBODY, 0)
    draw(torch.full((B, N), MASK), torch.ones(B, N, dtype=torch.bool), torch.rand(B, N), 0)
    assert lengths == [[4] * 4, [5] * 4, [6] * 4]


@pytest.mark.parametrize("guided_steps", [[0], [1, 2], [2, 3, 4]])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_outside_the_interval_draw_from_the_conditional_law(sampler, guided_steps):
    """Float64 reference; and they compute no unconditional row."""
    model, prompts, unconditional = StubModel(N, V), small_batch(P=P, G=G).prompts, []

    def watched(rows, codes_UN, wanted_UN):
        unconditional.append(int((rows.ids_BL == NOBODY.ids_BL).all(-1).sum()))
        return model.image_logits(rows, codes_UN, wanted_UN)

    forward = SharedForward(watched, MASK_ID, 64)
    with torch.no_grad():
        draw = Drawing(forward, prompts, NOBODY, 3.5, guided_steps)
        ours = SAMPLERS[sampler](draw, noise(4), (B, N), 5)
        theirs = SAMPLERS[sampler](all_at_once(model, prompts, 3.5, guided_steps), noise(4), (B, N), 5)
    assert torch.equal(ours.codes_BN, theirs.codes_BN) and torch.equal(ours.unmask_step_BN, theirs.unmask_step_BN)
    torch.testing.assert_close(ours.entropy_BN, theirs.entropy_BN, atol=1e-6, rtol=0)
    if sampler == "emerge":  # a row for each image that has tokens already; the first is one for all
        before, after = rows_to_draw(ours.unmask_step_BN, guided_steps)
        assert sum(unconditional) == after + bool(before)


def rows_to_draw(step_BN, steps):
    """How many images draw their first tokens in some of the steps, and how many draw further ones, step by step."""
    before = after = 0
    for step in steps:
        for row in step_BN.tolist():
            if step in row:
                before, after = before + (min(row) == step), after + (min(row) < step)
    return before, after
