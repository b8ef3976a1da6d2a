"""The gradients of methods and the sampler's exact one, all on the same rollouts; see `workflow/diagnose.py`.

P prompts, G rollouts per prompt and half, X = 2P parts of a gradient (a prompt's rollouts of one half each),
B = X*G rollouts, N image tokens, D numbers of a gradient.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.core.diagnosis import Products, draw_variance, jackknife, measures, products, tails
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.gradients import Rollouts, Sketch, gradient_parts, guided_logits, stepped
from htgrpo_ext.core.objective import Average
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.views import RolloutBatch, Update, add_up, same_contexts
from htgrpo_ext.methods.trajectory import TraceGRPO
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.scoring import plan_updates

DRAWS = 3  # of a method's first updates


class Gradient(NamedTuple):
    """A gradient in parts, and as a whole."""

    buckets: list[Tensor]  # float32 [X, D] each; one if it was not asked by rank
    direction: list[Tensor]  # the whole gradient, as the weights are shaped

    @property
    def whole_XD(self) -> Tensor:
        return add_up(self.buckets)


@dataclass
class Study:
    """Rollouts with their advantages, and what is needed to differentiate objectives on them.

    exact      the forward of the sampler's law, with its guidance
    plain      the forward of the methods
    buckets    the tokens of each part of the generation order, bool [B, N] each
    """

    settings: RunSettings
    rollouts: Rollouts
    rollout: Rollout
    batch: RolloutBatch
    exact: SharedForward
    plain: SharedForward
    buckets: list[Tensor]
    weights: Sequence[Tensor]
    sketch: Sketch

    @property
    def groups(self) -> int:
        """X"""
        return len(self.rollout.codes_BN) // self.settings.rollout.rollouts_per_prompt

    def draws(self, moment: str) -> Draws:
        """Noise of all groups."""
        return Draws(self.settings.seed, moment, range(self.groups), self.settings.rollout.rollouts_per_prompt)

    def exact_update(self) -> Update:
        """Every token in the context it was drawn in, earlier steps visible: the sampler's law (Eq. 16, s = 1)."""
        [update] = TraceGRPO(name="tracegrpo").updates(self.batch, self.draws("exact"), 1)
        return update

    def gradient(self, forward: SharedForward, update: Update, average: Average, by_rank: bool) -> Gradient:
        """The gradient of an update's objective, one group after another."""
        size = self.settings.rollout.rollouts_per_prompt
        buckets = self.buckets if by_rank else [torch.ones_like(self.buckets[0])]
        tables: list[list[Tensor]] = [[] for _ in buckets]
        direction = [torch.zeros_like(weight, dtype=torch.float32) for weight in self.weights]
        for group in range(self.groups):
            rows = slice(group * size, (group + 1) * size)
            parts = gradient_parts(forward, self.rollouts, update, average, rows, buckets, self.weights)
            for table, part in zip(tables, parts, strict=True):
                table.append(self.sketch.of(part))
                for total, each in zip(direction, part, strict=True):
                    total.add_(each)
        return Gradient([torch.stack(table) for table in tables], direction)


def study_of(
    settings: RunSettings, backbone: Backbone, rollouts: Rollouts, rollout: Rollout, batch: RolloutBatch, buckets: list
) -> Study:
    """A study of the weights that the run trains."""
    exact, plain = forwards(settings, backbone)
    weights = [weight for weight in backbone.model.parameters() if weight.requires_grad]
    sketch = Sketch(weights, settings.seed)
    return Study(settings, rollouts, rollout, batch, exact, plain, buckets, weights, sketch)


def forwards(settings: RunSettings, backbone: Backbone) -> tuple[SharedForward, SharedForward]:
    """The forward of the sampler's law and that of the methods; one and the same without guidance."""
    plain = SharedForward(backbone.image_logits, backbone.mask_id, settings.loop.batch_size)
    if settings.rollout.guidance == 0:
        return plain, plain
    guided = guided_logits(backbone.image_logits, backbone.unconditional(), settings.rollout.guidance)
    return SharedForward(guided, backbone.mask_id, settings.loop.batch_size), plain


def same_update(a: Update, b: Update) -> bool:
    """Whether two updates have one gradient: equal contexts, targets and weights."""
    return (
        same_contexts(a, b)
        and torch.equal(a.weight_BN, b.weight_BN)
        and all(torch.equal(v.target_BN > 0, w.target_BN > 0) for v, w in zip(a.views, b.views, strict=True))
        and torch.equal(a.target_BN, b.target_BN)
    )


def examine(study: Study, run: RunSettings, exact: Gradient) -> Iterator[dict]:
    """Records of a method's first update and of the K updates' mean; with stages, of each one's first and last update.

    run    the method's settings; only its method, label and loop are read
    exact  the sampler's own gradient
    """
    method, count = run.method, run.loop.updates_per_rollout
    same_law = study.exact is study.plain and method.average == "rollout"
    known = [(study.exact_update(), exact)] if same_law else []
    reusable = known

    def gradient(update: Update, by_rank: bool) -> Gradient:
        found = next((found for other, found in reusable if same_update(update, other)), None)
        return found or study.gradient(study.plain, update, method.average, by_rank)

    drawn = [
        plan_updates(run, study.rollout, study.rollouts.prompts, study.draws(f"diagnose {r}"))[1] for r in range(DRAWS)
    ]
    stages = [update.stage for update in drawn[0]]
    ends = {stages.index(stage) for stage in stages}
    if len(ends) > 1:  # supports are the smallest at a stage's end, or at its beginning
        ends |= {count - 1 - stages[::-1].index(stage) for stage in stages}
    label, cycle_XD = run.label or method.name, torch.zeros(())
    for k, update in enumerate(drawn[0]):
        shown = k in ends
        found = gradient(update, shown)
        cycle_XD = cycle_XD + found.whole_XD / count
        if not shown:
            continue
        reusable = [*known, (update, found)]
        record = {"method": label, "update": update.stage if len(set(stages)) > 1 else "first", "number": k + 1}
        record |= compared(found.whole_XD, exact.whole_XD)
        totals = [found, *(gradient(updates[k], False) for updates in drawn[1:])]
        record["noise_of_draws"] = draw_variance(torch.stack([total.whole_XD.sum(0) for total in totals]))
        record["tokens"] = float((update.target_BN > 0).sum(1).float().mean())
        record["by_rank"] = [
            compared(own_XD, exact_XD) for own_XD, exact_XD in zip(found.buckets, exact.buckets, strict=True)
        ]
        record["after_step"] = after_step(study, update, found.direction, run)
        yield record
    yield {"method": label, "update": "cycle", "number": None} | compared(cycle_XD, exact.whole_XD)


def compared(own_XD: Tensor, exact_XD: Tensor) -> dict:
    """The measures of a gradient with their standard errors."""
    found: Products = products(own_XD, exact_XD)
    values, errors = measures(found), jackknife(found)
    return {name: [value, error] for name, value, error in zip(values._fields, values, errors, strict=True)}


def after_step(study: Study, update: Update, direction: Sequence[Tensor], run: RunSettings) -> dict:
    """Log ratios of an update's targets, in its own contexts, after a step that moves the weights by the learning rate.

    The step goes along the gradient; the root mean square of the changes is the learning rate, as AdamW's first is.
    """
    before_BN = scored(study.plain, study.rollouts, update, "old")
    with stepped(study.weights, direction, run.loop.learning_rate):
        after_BN = scored(study.plain, study.rollouts, update, "old")
    return tails((after_BN - before_BN)[update.target_BN > 0].cpu(), run.loop.clip_epsilon)


@torch.no_grad()
def scored(forward: SharedForward, rollouts: Rollouts, update: Update, kind: str) -> Tensor:
    """Log-probabilities of an update's targets. float32 [B, N]"""
    return forward.log_probs(rollouts.prompts, rollouts.codes_BN, [update], kind)[0]
