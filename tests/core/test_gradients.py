"""Gradients in parts: against finite differences of a sampler's enumerated law, and against the methods' objectives."""

import itertools
import math

import pytest
import torch

from helpers.stubs import MASK_ID, StubModel, small_batch
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.gradients import Rollouts, Sketch, gradient_parts, guided_logits, stepped
from htgrpo_ext.core.objective import Judged, LogProbs, policy_objective
from htgrpo_ext.core.order import generation_rank
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import MASK
from htgrpo_ext.core.views import Prompts, RolloutBatch
from htgrpo_ext.settings import CHOICES

METHODS = CHOICES["method"]
N, V, T = 3, 2, 2
PROMPT, NOBODY = ([1, 2, 7], [1, 0, 0])  # ids
STAY = math.cos(math.pi / 4)  # emerge's share that is still masked after the first of two steps: cos(pi/2 1/2)


def prompts(ids, count=1):
    ids_BL = torch.tensor([ids] * count)
    return Prompts(ids_BL, torch.ones_like(ids_BL, dtype=torch.bool), ids_BL > 1)


def true_log_likelihood(model, codes, steps, guidance):
    """log P of one trajectory of emerge, by hand: which tokens a step unmasks, then the codes of these; float64."""
    total = 0.0
    for step in range(T):
        masked = [n for n in range(N) if steps[n] >= step]
        canvas = torch.tensor([[MASK if n in masked else codes[n] for n in range(N)]])
        everywhere = torch.ones(1, N, dtype=torch.bool)
        logits_NV = model.image_logits(prompts(PROMPT), canvas, everywhere)
        if guidance:
            without_NV = model.image_logits(prompts(NOBODY), canvas, everywhere)
            logits_NV = (1 + guidance) * logits_NV - guidance * without_NV
        for n in masked:
            now = steps[n] == step
            stay = STAY if step == 0 else 0.0
            total = total + math.log((1 - stay) if now else stay)
            if now:
                weights_V = logits_NV[n].exp()
                total = total + (weights_V[codes[n]] / weights_V.sum()).log()
    return total


def all_trajectories():
    return list(itertools.product(itertools.product(range(V), repeat=N), itertools.product(range(T), repeat=N)))


def weights_of(model):
    return [model.word, model.code, model.place, model.mix, model.head]


def finite_difference(model, value, direction):
    """The derivative of value() along a direction, by central differences, in float64."""
    ends = []
    for change in (1e-5, -1e-5):
        for weight, part in zip(weights_of(model), direction, strict=True):
            weight.data += change * part
        ends.append(float(value()))
        for weight, part in zip(weights_of(model), direction, strict=True):
            weight.data -= change * part
    return (ends[0] - ends[1]) / 2e-5


def single_weights(model):
    """One direction for each weight."""
    for weight in weights_of(model):
        for i in range(weight.numel()):
            direction = [torch.zeros_like(other) for other in weights_of(model)]
            next(d for d, w in zip(direction, weights_of(model), strict=True) if w is weight).view(-1)[i] = 1
            yield direction


def exact_gradient(model, trajectories, advantage_B, guidance):
    """Ours: TraceGRPO's views, all of them, under the sampler's law."""
    codes_BN = torch.tensor([codes for codes, _ in trajectories])
    steps_BN = torch.tensor([steps for _, steps in trajectories], dtype=torch.int16)
    rows = prompts(PROMPT, len(trajectories))
    batch = RolloutBatch(steps_BN, generation_rank(steps_BN, "raster"), rows.words_BL, 1)
    draws = Draws(0, "toy", range(len(trajectories)), 1)
    [update] = METHODS["tracegrpo"](name="tracegrpo").updates(batch, draws, 1)
    forward = SharedForward(guided_logits(model.image_logits, prompts(NOBODY), guidance), MASK_ID, 16)
    advantage_B = torch.as_tensor(advantage_B, dtype=torch.float32)
    judged = Judged(advantage_B, advantage_B, torch.ones(len(trajectories), dtype=torch.bool))
    everything = [torch.ones_like(codes_BN, dtype=torch.bool)]
    whole = slice(0, len(trajectories))
    rollouts = Rollouts(rows, codes_BN, judged)
    [part] = gradient_parts(forward, rollouts, update, "rollout", whole, everything, weights_of(model))
    return torch.cat([each.flatten() for each in part]).double()


def far(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_the_exact_gradient_is_that_of_the_samplers_true_log_likelihood(guidance):
    """Five trajectories of three tokens; the objective is mean_g A_g (1/N) log P."""
    model = StubModel(N, V, width=2)
    chosen, advantages = all_trajectories()[3:64:13], [1.5, -0.5, 0.25, -2.0, 0.75]

    def weighted():
        logs = (true_log_likelihood(model, *each, guidance) for each in chosen)
        return sum(a * log for a, log in zip(advantages, logs, strict=True)) / (len(chosen) * N)

    with torch.no_grad():
        expected = torch.tensor(
            [finite_difference(model, weighted, each) for each in single_weights(model)], dtype=torch.float64
        )
    assert far(exact_gradient(model, chosen, advantages, guidance), expected) < 1e-5


def test_its_expectation_is_the_gradient_of_the_expected_reward():
    """All 64 trajectories, by their probabilities: the policy gradient theorem, nothing sampled."""
    model, everything = StubModel(N, V, width=2), all_trajectories()
    rewards = [sum(codes) + 0.5 * (codes[0] == codes[2]) + 0.1 * steps[1] for codes, steps in everything]
    with torch.no_grad():
        probabilities = [math.exp(true_log_likelihood(model, *each, 0.0)) for each in everything]
        assert sum(probabilities) == pytest.approx(1, abs=1e-12)

        def expected_reward():
            logs = (true_log_likelihood(model, *each, 0.0) for each in everything)
            return sum(reward * math.exp(log) for reward, log in zip(rewards, logs, strict=True))

        generator = torch.Generator().manual_seed(1)
        directions = [[torch.randn(w.shape, generator=generator).double() for w in weights_of(model)] for _ in range(4)]
        expected = torch.tensor(
            [finite_difference(model, expected_reward, each) for each in directions], dtype=torch.float64
        )
    scale = len(everything) * N  # the objective is a mean over rollouts and tokens
    advantages = [scale * p * r for p, r in zip(probabilities, rewards, strict=True)]
    gradient = exact_gradient(model, everything, advantages, 0.0)
    along = torch.stack([torch.cat([part.flatten() for part in each]) @ gradient for each in directions])
    assert far(along, expected) < 1e-5


PLANS = {
    "htgrpo": {"budget": {"global": 1, "structure": 1, "refinement": 1}},
    "maskgrpo": {},
    "maskgrpo-fixed": {},
    "unigrpo": {},
    "d1": {"prompt_mask_rate": 0.5},
    "tracegrpo": {"steps_per_update": 2},
}


@pytest.mark.parametrize("name", PLANS)
def test_parts_add_up_to_the_gradient_of_the_methods_own_objective(name):
    """Over groups and ranks; one group was not scored. The whole: one backward of the objective, as in training."""
    model, small = StubModel(8, 4), small_batch(P=3, G=3)
    method = METHODS[name](name=name, **PLANS[name])
    advantage_B = torch.tensor([1.0, -1.0, 0.3, 0.0, 0.0, 0.0, -0.6, -0.7, 1.3])
    judged = Judged(advantage_B, advantage_B, torch.tensor([True] * 3 + [False] * 3 + [True] * 3))
    forward, weights = SharedForward(model.image_logits, MASK_ID, 2), weights_of(model)
    for update in method.updates(small.batch, small.draws, 3):
        [new_BN] = forward.log_probs(small.prompts, small.codes_BN, [update], "new")
        scores = LogProbs(new_BN, new_BN.detach(), None)
        objective = policy_objective(scores, update, judged, 0.2, 0.0, method.average)
        whole = torch.autograd.grad(-objective.loss, weights)
        buckets = [small.batch.rank_BN <= 3, small.batch.rank_BN > 3]
        totals = [torch.zeros_like(weight) for weight in weights]
        for group in range(3):
            rows, rollouts = slice(3 * group, 3 * group + 3), Rollouts(small.prompts, small.codes_BN, judged)
            for part in gradient_parts(forward, rollouts, update, method.average, rows, buckets, weights):
                assert group != 1 or not any(each.any() for each in part)
                for total, each in zip(totals, part, strict=True):
                    total += each
        for total, expected in zip(totals, whole, strict=True):
            torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)


def test_a_small_gradient_is_kept_and_a_large_one_keeps_its_inner_products_on_average():
    generator = torch.Generator().manual_seed(0)
    x, y = ([torch.randn(7, 5, generator=generator), torch.randn(11, generator=generator)] for _ in range(2))
    flat_x, flat_y = (torch.cat([part.flatten() for part in each]) for each in (x, y))
    assert torch.equal(Sketch(x, 0).of(x), flat_x)
    found = []
    for seed in range(600):
        sketch = Sketch(x, seed, exact=10, size=13)
        assert sketch.size == 13 == len(sketch.of(x))
        found.append(float(sketch.of(x) @ sketch.of(y)))
    error = float(torch.tensor(found).std()) / len(found) ** 0.5
    assert abs(sum(found) / len(found) - float(flat_x @ flat_y)) < 4 * error
    assert error * len(found) ** 0.5 < 2 * float(flat_x.norm() * flat_y.norm()) / 13**0.5


def test_a_sketch_adds_weight_i_to_number_i_mod_its_size():
    weights = [torch.zeros(4), torch.zeros(2, 3)]
    sketch = Sketch(weights, 0, exact=1, size=3)
    for i in range(10):
        one = torch.zeros(10)
        one[i] = 1
        vector = sketch.of([one[:4], one[4:].view(2, 3)])
        assert vector.abs().tolist() == [float(i % 3 == d) for d in range(3)]


def test_a_step_moves_the_weights_by_the_rms_and_is_taken_back():
    weights = [torch.ones(2), torch.zeros(2)]
    with stepped(weights, [torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])], 0.1):
        assert torch.cat(weights).tolist() == pytest.approx([1.12, 1, 0, 0.16])  # (3, 4) / 5 x 0.1 x sqrt(4)
    assert torch.cat(weights).tolist() == [1, 1, 0, 0]
