"""What a configuration will do, found out without loading weights: updates, forwards, batches, memory.

Forwards are measured, not computed: the first cycle's method, sampler, scoring and estimator run as in training, on
a model that answers zeros and costs nothing.

P prompts, G rollouts per prompt, B = P*G, N image tokens, V codebook, T denoising steps, K updates, U rows,
M wanted positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.stages import sampling_rate, schedule
from htgrpo_ext.core.views import Prompts, Update
from htgrpo_ext.methods.htgrpo import HTGRPO, StageRates
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.rollout import generate
from htgrpo_ext.train.scoring import plan_updates, score_micro_batches

KINDS = ("rollout", "old", "reference", "new")
COST = {"rollout": 1, "old": 1, "reference": 1, "new": 3}  # of a row, in forwards: a backward counts as two
STUB_CODES = 32  # the stub's codebook: enough that two rollouts hardly ever show the same codes
BYTES = 4  # fp32


class PlannedUpdate(NamedTuple):
    """Update k: its supports' smallest and largest size over the rollouts, and its views."""

    stage: str
    rate: float | None  # gamma, of HT-GRPO
    smallest: int
    largest: int
    views: int


class Plan(NamedTuple):
    """Rows are forwards of one row of prompt and image, over one cycle of all P prompts."""

    settings: RunSettings
    updates: list[PlannedUpdate]
    naive: dict[str, int]  # rows by kind if every rollout, view and update had its own, old and reference included
    rows: dict[str, int]  # rows by kind as they are run
    rows_at_once: int  # most rows with gradient that one micro-batch holds
    memory: dict[str, int]  # bytes by part

    def cost(self, rows: dict[str, int]) -> int:
        """Rows with the backward included, in units of one forward."""
        return sum(COST[kind] * rows[kind] for kind in KINDS)


class StubBackbone:
    """A backbone that answers zeros and runs nothing."""

    codebook_size = STUB_CODES
    mask_id = -1  # no prompt has it

    def __init__(self, prompts: Prompts, nobody: Prompts, num_image_tokens: int):
        self.prompts, self.nobody, self.num_image_tokens = prompts, nobody, num_image_tokens

    def unconditional(self) -> Prompts:
        return self.nobody

    def image_logits(self, prompts: Prompts, codes_UN: Tensor, wanted_UN: Tensor) -> Tensor:
        return torch.zeros(int(wanted_UN.sum()), STUB_CODES)

    @contextmanager
    def reference(self) -> Iterator[None]:
        yield


@torch.no_grad()
def simulate(settings: RunSettings, backbone: StubBackbone) -> tuple[list[Update], dict[str, int], int]:
    """The first cycle: its K updates, rows by kind, and the most rows with gradient at once.

    backbone  holds the cycle's P prompts
    """
    method, loop, G = settings.method, settings.loop, settings.rollout.rollouts_per_prompt
    K, A, P = loop.updates_per_rollout, loop.micro_batches, settings.rollout.prompts_per_cycle
    forward = SharedForward(backbone.image_logits, backbone.mask_id, loop.batch_size)
    rows, draws = backbone.prompts.repeat(G), Draws(settings.seed, 0, range(P), G)
    rollout = generate(backbone, forward, rows, draws, settings.rollout)
    updates = plan_updates(settings, rollout, rows, draws)[1]
    at_once = 0
    scored = score_micro_batches(settings, backbone, forward, rows, rollout.codes_BN, updates)
    for a, (_, scores) in enumerate(scored):
        for k in range(K):
            before = forward.rows["new"]
            scores.new(method.update_index(k, a, A, K))
            at_once = max(at_once, forward.rows["new"] - before)
    return updates, {kind: forward.rows[kind] for kind in KINDS}, at_once


def naive_rows(settings: RunSettings, updates: list[Update]) -> dict[str, int]:
    """Rows by kind for code that shares nothing: one per rollout, view and update; old and reference in passes."""
    rollout, kl = settings.rollout, settings.loop.kl_coefficient > 0
    scored = sum(int((view.target_BN > 0).any(-1).sum()) for update in updates for view in update.views)
    passes = 2 if rollout.guidance else 1
    images = rollout.prompts_per_cycle * rollout.rollouts_per_prompt
    return {"rollout": images * rollout.steps * passes, "old": scored, "reference": scored * kl, "new": scored}


def plan(settings: RunSettings) -> Plan:
    """Plan a run of the micro model: simulate its first cycle, and estimate its memory."""
    from htgrpo_ext.backbones.micro import encode_words
    from htgrpo_ext.micro import world
    from htgrpo_ext.micro.model import MicroConfig, MicroModel

    config = MicroConfig(codebook_size=world.CODEBOOK_SIZE)
    texts = [prompt["prompt"] for prompt in world.split_prompts(settings.eval.prompts_per_task)[0]]
    P, length = settings.rollout.prompts_per_cycle, config.prompt_length
    chosen = [texts[i * len(texts) // P % len(texts)] for i in range(P)]  # from all tasks
    backbone = StubBackbone(encode_words(chosen, length), encode_words([""], length), world.NUM_IMAGE_TOKENS)
    updates, rows, at_once = simulate(settings, backbone)
    with torch.device("meta"):
        model = MicroModel(config)
    weights = sum(p.numel() for p in model.parameters())
    trained = weights
    if settings.model.tuning == "lora":
        lora = settings.model.lora
        layers = [m for name, m in model.named_modules() if name.rpartition(".")[2] in lora.targets]
        trained = sum(lora.rank * (layer.in_features + layer.out_features) for layer in layers)
        weights += trained
    width, ffn = config.hidden_size, config.ffn_size
    kept = config.num_layers * (9 * width + 4 * ffn) * (length + backbone.num_image_tokens)
    memory = {
        "weights": weights * BYTES,
        "gradients": trained * BYTES,
        "AdamW's two moments": 2 * trained * BYTES,
        "frozen reference copy": 0 if trained < weights else weights * BYTES,
        "logits": 2 * at_once * backbone.num_image_tokens * config.codebook_size * BYTES,
        "activations": at_once * kept * BYTES,
    }
    return Plan(settings, _planned(settings, updates), naive_rows(settings, updates), rows, at_once, memory)


def _planned(settings: RunSettings, updates: list[Update]) -> list[PlannedUpdate]:
    method, rates = settings.method, [None] * len(updates)
    if isinstance(method, HTGRPO):
        staged = [(update, method.rates.get(update.stage, StageRates())) for update in schedule(method.budget)]
        rates = [sampling_rate(u.index, u.length, r.gamma_min, r.gamma_max, r.mode) for u, r in staged]
    planned = []
    for update, rate in zip(updates, rates, strict=True):
        size_B = (update.target_BN > 0).sum(-1)
        planned.append(PlannedUpdate(update.stage, rate, int(size_B.min()), int(size_B.max()), len(update.views)))
    return planned


def print_plan(settings: RunSettings) -> None:
    """Print the plan of a run: stages, supports, forwards, batch algebra, memory."""
    planned, console = plan(settings), Console(highlight=False)
    rollout, loop = settings.rollout, settings.loop
    P, G, K = rollout.prompts_per_cycle, rollout.rollouts_per_prompt, loop.updates_per_rollout

    updates = _table(f"{settings.run_name}: the {K} updates of a cycle", "update", "stage", "gamma", "support", "views")
    for k, update in enumerate(planned.updates, 1):
        size = str(update.smallest) if update.smallest == update.largest else f"{update.smallest}-{update.largest}"
        rate = "" if update.rate is None else f"{update.rate:.3f}"
        updates.add_row(str(k), update.stage, rate, size, str(update.views))
    console.print(updates)

    forwards = _table("forwards per prompt and cycle, in rows", "", *KINDS, "scoring", "cost")
    for name, rows in (("unshared", planned.naive), ("run", planned.rows)):
        scoring = sum(rows[kind] for kind in KINDS[1:])
        counts = (*(rows[kind] for kind in KINDS), scoring, planned.cost(rows))
        forwards.add_row(name, *(f"{count / P:.1f}".removesuffix(".0") for count in counts))
    console.print(forwards)
    print("unshared: a row for every rollout, view and update; run: equal rows shared, as measured")
    print("scoring: old + reference + new; cost: all, with a new row counted three times for its backward\n")

    images, micro = P * G, P // loop.micro_batches
    print(f"batch    {P} prompts x {G} rollouts = {images} images a cycle")
    print(f"         a step takes {loop.micro_batches} x {micro} prompts = {images} images (micro-batches x prompts)")
    print(
        f"         {K} steps a cycle, {K * loop.cycles} in {loop.cycles} cycles; {images * loop.cycles} images in all\n"
    )

    for part, size in (*planned.memory.items(), ("together", sum(planned.memory.values()))):
        print(f"{'memory' if part == 'weights' else '':9}{part:24}{size / 2**20:9.1f} MiB")
    print(
        f"         An estimate, fp32, for the {planned.rows_at_once} rows a micro-batch holds for its backward.\n"
        "         logits: rows x N x V, twice (softmax). activations: 9 widths and 4 feed-forward\n"
        "         widths per layer and position. Not counted: Python, libraries, rollouts."
    )


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", "stage") else "right")
    return table
