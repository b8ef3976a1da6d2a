"""Samplers, against the exact distribution of a toy image of three tokens and two codes, drawn in three steps."""

from itertools import product
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.stubs import drawing
from htgrpo_ext.core.sampler import MASK, SAMPLERS, categorical, emerge, guided, gumbel, maskgit, maskgit_constant

N, V, T = 3, 2, 3
TABLE = 1.5 * torch.randn(3**N, N, V, generator=torch.Generator().manual_seed(5))  # logits for every canvas
EXACT = TABLE.double().softmax(-1).tolist()


def toy_logits(codes_BN):
    canvas_B = ((codes_BN + 1) * torch.tensor([9, 3, 1])).sum(-1)
    return TABLE[canvas_B][codes_BN == MASK]


def noise(shape, seed):
    """uniform(step) for a sampler, from a generator per step."""
    B, tokens = shape
    return lambda step: torch.rand(B, 2, tokens, generator=torch.Generator().manual_seed(100 * seed + step))


def probabilities(canvas, place):
    a, b, c = (code + 1 for code in canvas)
    return EXACT[9 * a + 3 * b + c][place]


def exact(decide, canvas=(MASK,) * N, steps=(MASK,) * N, step=0):
    """{(codes, steps): probability}. `decide(step, canvas)` lists (probability, {place: code}) of one step."""
    if MASK not in canvas:
        return {(canvas, steps): 1.0}
    total = {}
    for probability, drawn in decide(step, canvas):
        if probability == 0:
            continue
        after = tuple(drawn.get(n, code) for n, code in enumerate(canvas))
        when = tuple(step if n in drawn else s for n, s in enumerate(steps))
        for state, rest in exact(decide, after, when, step + 1).items():
            total[state] = total.get(state, 0) + probability * rest
    return total


def emerge_step(step, canvas):
    # Shares masked before steps 0, 1, 2 and after: cos 0, 30, 60, 90 degrees
    shares = [1, sqrt(3) / 2, 1 / 2, 0]
    leave = 1 - shares[step + 1] / shares[step]
    for outcome in product([MASK, *range(V)], repeat=N):
        drawn = {n: code for n, code in enumerate(outcome) if code != MASK}
        if any(canvas[n] != MASK for n in drawn):
            continue
        probability = 1.0
        for n in range(N):
            if canvas[n] == MASK:
                probability *= leave * probabilities(canvas, n)[drawn[n]] if n in drawn else 1 - leave
        yield probability, drawn


def maskgit_step(step, canvas, temperature, annealing):
    # floor(3 cos 30) = 2 and floor(3 cos 60) = 1 stay masked: one token at a time. The largest of log p + tau Gumbel
    # is token n with probability p_n^(1/tau) / sum; MMaDA's tau is temperature x 2/3, then x 1/3 once more.
    tau = temperature * annealing[step]
    left = [n for n in range(N) if canvas[n] == MASK]
    for codes in product(range(V), repeat=len(left)):
        p = [probabilities(canvas, n)[code] for n, code in zip(left, codes, strict=True)]
        together = 1.0
        for each in p:
            together *= each
        for n, code, each in zip(left, codes, p, strict=True):
            yield together * each ** (1 / tau) / sum(q ** (1 / tau) for q in p), {n: code}


@pytest.mark.parametrize("name", ["emerge", "maskgit", "maskgit hotter", "constant", "constant hotter"])
def test_codes_and_steps_follow_the_exact_distribution(name):
    rows = 40_000
    if name == "emerge":
        rollout, expected = emerge(drawing(toy_logits), noise((rows, N), 1), (rows, N), T), exact(emerge_step)
    else:
        hot = 4.0 if "hotter" in name else 1.0
        sampler, annealing = (maskgit_constant, [1, 1, 1]) if "constant" in name else (maskgit, [2 / 3, 2 / 9, 1])
        rollout = sampler(drawing(toy_logits), noise((rows, N), 2), (rows, N), T, temperature=hot)
        expected = exact(lambda step, canvas: maskgit_step(step, canvas, hot, annealing))
    assert sum(expected.values()) == pytest.approx(1)
    joint = torch.cat([rollout.codes_BN, rollout.unmask_step_BN.long()], dim=1).tolist()

    def check(key):
        seen, exactly = {}, {}
        for row in joint:
            cell = key(tuple(row[:N]), tuple(row[N:]))
            seen[cell] = seen.get(cell, 0) + 1
        for state, probability in expected.items():
            exactly[key(*state)] = exactly.get(key(*state), 0) + probability
        assert set(seen) <= set(exactly)
        for cell, p in exactly.items():
            assert abs(seen.get(cell, 0) - rows * p) < 5 * sqrt(rows * p * (1 - p)) + 2, (cell, p)

    check(lambda codes, steps: codes)
    check(lambda codes, steps: steps)
    check(lambda codes, steps: (codes, steps))


def test_maskgit_at_temperature_zero_keeps_the_most_confident():
    def flat(codes_BN):  # code 0 with probability about 1, 0.9, 0.6 at places 2, 0, 1
        return torch.tensor([[2.2, 0.0], [0.4, 0.0], [9.0, 0.0]]).expand(len(codes_BN), N, V)[codes_BN == MASK]

    rollout = maskgit(drawing(flat), lambda step: torch.zeros(2, 2, N), (2, N), T, temperature=0.0)
    assert rollout.unmask_step_BN.tolist() == [[1, 2, 0]] * 2
    assert rollout.codes_BN.tolist() == [[0, 0, 0]] * 2


def coin(codes_BN):
    return torch.zeros(int((codes_BN == MASK).sum()), V)


def test_maskgit_unmasks_the_published_counts():
    rollout = maskgit(drawing(coin), noise((3, 1024), 3), (3, 1024), 12)
    counts = [9, 26, 43, 60, 74, 88, 101, 111, 121, 126, 132, 133]  # measured on MaskGRPO's code
    assert torch.nn.functional.one_hot(rollout.unmask_step_BN.long()).sum(1).tolist() == [counts] * 3


def test_of_a_last_token_mmada_waits_for_the_last_step_and_lumina_does_not():
    """With two tokens floor(2 cos) is 1 from the first step of three on."""
    assert maskgit(drawing(coin), noise((1, 2), 3), (1, 2), 3).unmask_step_BN.sort().values.tolist() == [[0, 2]]
    assert maskgit_constant(drawing(coin), noise((1, 2), 3), (1, 2), 3).unmask_step_BN.sort().values.tolist() == [
        [0, 1]
    ]


def test_gumbel_noise_reaches_as_far_as_float32_does():
    """In bfloat16 the largest number below 1 is 0.996, and -log(-log 0.996) only 5.5."""
    assert gumbel(torch.tensor([0.0, 0.5, 1 - 2**-24])).tolist() == pytest.approx([-3.83, 0.3665, 16.64], abs=0.01)


def test_emerge_unmasks_the_same_counts_on_average():
    B, tokens = 64, 1024
    rollout = emerge(drawing(coin), noise((B, tokens), 4), (B, tokens), 12)
    counts = torch.bincount(rollout.unmask_step_BN.long().flatten(), minlength=12) / B
    means = [8.8, 26.1, 43.1, 59.2, 74.4, 88.3, 100.7, 111.4, 120.1, 126.8, 131.4, 133.7]
    for count, expected in zip(counts.tolist(), means, strict=True):
        assert abs(count - expected) < 5 * sqrt(expected / B) + 0.05  # the means are rounded


def test_emerge_asks_for_the_tokens_that_appear_and_for_nothing_else():
    wanted = []

    def watched(codes_BN, wanted_BN, uniform_BN, step):
        wanted.append(wanted_BN)
        return drawing(coin)(codes_BN, wanted_BN, uniform_BN, step)

    rollout = emerge(watched, noise((5, 40), 6), (5, 40), 7)
    for step, wanted_BN in enumerate(wanted):
        assert torch.equal(wanted_BN, rollout.unmask_step_BN == step)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_tokens_see_only_earlier_steps_and_stay_as_drawn(sampler, steps):
    shape, shown, before = (5, 40), [], []

    def watched(codes_BN):
        shown.append(codes_BN)
        before.append(codes_BN.clone())
        return coin(codes_BN)

    rollout = sampler(drawing(watched), noise(shape, 6), shape, steps)
    assert rollout.codes_BN.min() >= 0 and rollout.codes_BN.max() < V
    assert rollout.unmask_step_BN.dtype == torch.int16
    assert set(rollout.unmask_step_BN.unique().tolist()) <= set(range(steps))
    assert len(shown) == steps  # 40 tokens never finish early here
    for step, (codes_BN, copy_BN) in enumerate(zip(shown, before, strict=True)):
        assert torch.equal(codes_BN, copy_BN)  # nothing is changed in place
        assert torch.equal(codes_BN, torch.where(rollout.unmask_step_BN < step, rollout.codes_BN, MASK))


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_samplers_repeat_themselves_and_leave_the_global_generator_alone(sampler):
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), sampler(drawing(toy_logits), noise((50, N), 7), (50, N), T)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = sampler(drawing(toy_logits), noise((50, N), 7), (50, N), T)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_entropy_is_that_of_each_tokens_sampling_distribution(sampler):
    rollout = sampler(drawing(toy_logits), noise((30, N), 8), (30, N), T)
    for codes, steps, entropies in zip(*(t.tolist() for t in rollout), strict=True):
        for n in range(N):
            canvas = [code if s < steps[n] else MASK for code, s in zip(codes, steps, strict=True)]
            p = torch.tensor(probabilities(canvas, n))
            assert entropies[n] == pytest.approx(-(p * p.log()).sum().item(), abs=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_a_sampler_of_no_steps_is_refused(sampler):
    with pytest.raises(ValueError, match="at least 1, not 0"):
        sampler(coin, None, (1, 4), 0)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=6).filter(any), st.integers(0, 2**24 - 1))
def test_a_code_of_probability_zero_is_never_drawn(weights, u):
    probs_1V = torch.tensor([weights]) / sum(weights)
    for number in (u, 0, 1, 2**24 - 1):  # from 0 to the largest float32 below 1
        assert weights[categorical(probs_1V, torch.tensor([number / 2**24])).item()] > 0


def test_codes_are_drawn_as_often_as_they_are_probable():
    # Evenly spaced noise: each code's count is its probability of the 1,000, to within one at either end
    probs_V = torch.tensor([0.0, 0.1, 0.0, 0.25, 0.65, 0.0])
    drawn = categorical(probs_V.expand(1000, 6), (torch.arange(1000) + 0.5) / 1000)
    seen = torch.bincount(drawn, minlength=6)
    assert ((seen - 1000 * probs_V).abs() <= 1).all() and seen[[0, 2, 5]].sum() == 0


def test_guidance_moves_away_from_the_unconditional_logits():
    conditional, unconditional = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 3.0])
    # (1 + 3.5) x 2 - 3.5 x 1 = 5.5 and (1 + 3.5) x -1 - 3.5 x 3 = -15
    assert guided(conditional, unconditional, 3.5).tolist() == [5.5, -15.0]
    assert guided(conditional, unconditional, 0).tolist() == [2.0, -1.0]
