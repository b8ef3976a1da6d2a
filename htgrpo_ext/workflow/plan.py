"""What a run will do: updates, forwards, batches, memory. No weights are loaded.

Forwards are counted, not derived: method, sampler, scoring and estimator of the first cycle run as in training, on a
stand-in model that returns zeros (`simulation.py`).

P prompts, G rollouts per prompt, B = P*G, N image tokens, V codebook, T denoising steps, K updates, U rows,
M wanted positions.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from htgrpo_ext.backbones.sizes import Sizes
from htgrpo_ext.core.batches import BatchSize
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.views import Update
from htgrpo_ext.errors import UserError
from htgrpo_ext.methods.htgrpo import HTGRPO
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.workflow.simulation import KINDS, Reused, StubBackbone, naive_rows, simulate

COST = {"rollout": 1, "old": 1, "reference": 1, "new": 3}  # of a row, in forwards: a backward counts as two
ROLLOUT = "rollout, instead of the last two"


class Device(NamedTuple):
    """Devices of one kind, one process each; `flops` is the maker's figure for dense bfloat16, per second."""

    name: str
    processes: int
    memory: int  # bytes
    flops: float


UTILISATION = 0.4  # share of that figure that a forward reaches. Assumed, never measured here
DEVICES = (
    Device("8 x A100-80G", 8, 80 * 10**9, 312e12),
    Device("1 x H200", 1, 141 * 10**9, 989e12),
    Device("1 x A100-80G", 1, 80 * 10**9, 312e12),
    Device("1 x RTX 4090", 1, 24 * 10**9, 165e12),
    Device("8 CPU cores", 1, 32 * 10**9, 0.77e12),  # float32: two AVX2 units that multiply and add, at 3 GHz
)


class PlannedUpdate(NamedTuple):
    """Update k: smallest and largest support size over the rollouts, and the number of views."""

    stage: str
    rate: float | None  # gamma, of HT-GRPO
    smallest: int
    largest: int
    views: int


class PlannedEvaluation(NamedTuple):
    """An evaluation while training, over all processes."""

    images: int
    rows: int
    positions: int  # whose logits they want
    times: int  # in the run, before and after training included


class Plan(NamedTuple):
    """The plan of one cycle over all P prompts; a row is one prompt with one canvas."""

    settings: RunSettings
    updates: list[PlannedUpdate]
    naive: dict[str, int]  # rows by kind without sharing: one for each rollout, view and update
    rows: dict[str, int]  # rows by kind, with equal rows shared
    rows_at_once: int  # most rows with gradient in one micro-batch
    memory: dict[str, int]  # bytes by part
    sizes: Sizes
    rollout_positions: int  # whose logits the rollouts want
    evaluation: PlannedEvaluation | None = None
    reused: Reused = Reused()

    def cost(self, rows: dict[str, int]) -> int:
        """Cost of these rows, backward included, in forwards of one row."""
        return sum(COST[kind] * rows[kind] for kind in KINDS)

    def reused_cost(self) -> float:
        """Cost of the rows that compute only what has changed, likewise."""
        return self.reused.computed / self.sizes.sequence

    def peak_memory(self) -> int:
        """Peak memory in bytes. Rollout and update do not overlap, so the larger of the two counts."""
        last = self.memory["logits"] + self.memory["activations"]
        rest = sum(size for part, size in self.memory.items() if part != ROLLOUT) - last
        return rest + max(last, self.memory.get(ROLLOUT, 0))


@torch.no_grad()
def planned_evaluation(settings: RunSettings) -> PlannedEvaluation | None:
    """What the evaluations while training cost; None if the run has none."""
    section, cycles = settings.eval, settings.loop.cycles
    if section is None or section.every is None:
        return None
    prompts, images = section.num_held_out, section.images_per_prompt
    backbone = StubBackbone(*settings.model.planned_prompts(1), settings.model.num_image_tokens)
    forward = SharedForward(backbone.image_logits, backbone.mask_id, settings.loop.batch_size)
    draws = Draws(section.seed, "held out", [0], images)
    generate(backbone, forward, backbone.prompts.repeat(images), draws, settings.rollout)
    times = len({*range(0, cycles + 1, section.every), cycles})
    rows, positions = forward.rows["rollout"], backbone.positions
    return PlannedEvaluation(prompts * images, prompts * rows, prompts * positions, times)


def plan(settings: RunSettings, processes: int = 1) -> Plan:
    """Simulate the first cycle of one process, and estimate the memory it needs.

    Raises UserError if the batch does not divide by the processes, or if the checkpoint's config.json is unusable.
    """
    if problems := settings.problems(processes):
        raise UserError("\n".join(problems))
    rollout = settings.rollout.model_copy(update={"prompts_per_cycle": settings.rollout.prompts_per_cycle // processes})
    settings = settings.model_copy(update={"rollout": rollout})
    backbone = StubBackbone(*settings.model.planned_prompts(rollout.prompts_per_cycle), settings.model.num_image_tokens)
    updates, rows, at_once, positions, sampled, of_a_row, reused = simulate(settings, backbone)
    sizes, batch_size = settings.model.sizes(), rows_per_forward(settings)
    memory = sizes.memory(at_once, positions, batch_size)
    if settings.model.on_accelerators:
        passes = 2 if rollout.guided_steps else 1
        images = min(batch_size, rollout.prompts_per_cycle // settings.loop.micro_batches * rollout.rollouts_per_prompt)
        memory[ROLLOUT] = sizes.rollout_memory(min(batch_size, passes * images), passes * images * of_a_row)
        if rollout.refresh > 1:
            memory[ROLLOUT] += sizes.kept_memory(passes * images)
    planned, naive, evaluation = (
        _planned(settings, updates),
        naive_rows(settings, updates),
        planned_evaluation(settings),
    )
    return Plan(settings, planned, naive, rows, at_once, memory, sizes, sampled, evaluation, reused)


def rows_per_forward(settings: RunSettings) -> int:
    """`loop.batch_size`; for `auto` what it begins with, which is halved where the memory does not hold it."""
    return BatchSize(settings.loop.batch_size).on(torch.device("cuda" if settings.model.on_accelerators else "cpu"))


def _planned(settings: RunSettings, updates: list[Update]) -> list[PlannedUpdate]:
    method, rates = settings.method, [None] * len(updates)
    if isinstance(method, HTGRPO):
        rates = [rate for _, rate in method.sampling_rates()]
    planned = []
    for update, rate in zip(updates, rates, strict=True):
        size_B = (update.target_BN > 0).sum(-1)
        planned.append(PlannedUpdate(update.stage, rate, int(size_B.min()), int(size_B.max()), len(update.views)))
    return planned


def devices_for(settings: RunSettings) -> list[Device]:
    """The devices that a run is planned on: those of its model whose processes divide the batch."""
    if not settings.model.on_accelerators:
        return []
    named = {device.name: device for device in DEVICES}
    return [named[name] for name in settings.model.planned_on if not settings.problems(named[name].processes)]


def print_plan(settings: RunSettings) -> None:
    """Print a run's plan: updates, forwards, batches, memory; for models on accelerators also time, by device."""
    large = settings.model.on_accelerators
    devices = devices_for(settings)
    by_device: dict[Device, Plan] = {}
    for device in devices:
        with _working(f"{settings.run_name}: simulating a cycle on {device.name}"):
            by_device[device] = plan(settings, device.processes)
    planned, console = by_device[devices[0]] if devices else plan(settings), Console(highlight=False)
    loop, rollout = settings.loop, planned.settings.rollout  # of one process
    P, G, K = settings.rollout.prompts_per_cycle, rollout.rollouts_per_prompt, loop.updates_per_rollout

    updates = _table(f"{settings.run_name}: the {K} updates of a cycle", "update", "stage", "gamma", "support", "views")
    for k, update in enumerate(planned.updates, 1):
        size = str(update.smallest) if update.smallest == update.largest else f"{update.smallest}-{update.largest}"
        rate = "" if update.rate is None else f"{update.rate:.3f}"
        updates.add_row(str(k), update.stage, rate, size, str(update.views))
    console.print(updates)

    forwards = _table("forwards per prompt and cycle, in rows", "", *KINDS, "scoring", "cost")
    for name, rows in (("unshared", planned.naive), ("run", planned.rows)):
        scoring = sum(rows[kind] for kind in KINDS[1:])
        cost = planned.cost(rows) + (planned.reused_cost() if name == "run" else 0)
        counts = (*(rows[kind] for kind in KINDS), scoring, cost)
        forwards.add_row(name, *(f"{count / rollout.prompts_per_cycle:.1f}".removesuffix(".0") for count in counts))
    console.print(forwards)
    console.print("unshared: a row for every rollout, view and update; run: equal rows shared, as measured")
    if reused := planned.reused.rows:
        each = planned.reused.computed / reused
        console.print(
            f"reuse: {reused / rollout.prompts_per_cycle:.1f} rollout rows more, each of {each:.0f} positions in place "
            f"of {planned.sizes.sequence}; the cost has them"
        )
    console.print("scoring: old + reference + new; cost: all, with a new row counted three times for its backward\n")

    images, micro = P * G, P // loop.micro_batches
    print(f"batch    {P} prompts x {G} rollouts = {images} images a cycle")
    print(f"         a step takes {loop.micro_batches} x {micro} prompts = {images} images (micro-batches x prompts)")
    print(
        f"         {K} steps a cycle, {K * loop.cycles} in {loop.cycles} cycles; {images * loop.cycles} images in all\n"
    )
    if settings.benchmark:
        count = len(settings.benchmark.prompts()) * settings.benchmark.images_per_prompt
        print(f"eval     {settings.benchmark.title}, before and after: 2 x {count} images\n")
    if evaluation := planned.evaluation:
        total = evaluation.times * evaluation.images
        print(f"eval     while training: {evaluation.times} times {evaluation.images} images of held-out prompts")
        print(f"         {total} images in all, {total / (images * loop.cycles):.1%} as many as are trained on\n")
    if large:
        _print_devices(by_device, console)
    else:
        _print_memory(planned, console)


def _working(what: str) -> AbstractContextManager:
    """A sign of life on stderr: for a method with many views a simulated cycle takes a minute."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        return console.status(what)
    console.print(what, markup=False, soft_wrap=True)
    return nullcontext()


def _print_memory(planned: Plan, console: Console) -> None:
    for part, size in (*planned.memory.items(), ("together", sum(planned.memory.values()))):
        print(f"{'memory' if part == 'weights' else '':9}{part:24}{size / 2**20:9.1f} MiB")
    console.print(
        f"An estimate, fp32, for the {planned.rows_at_once} rows a micro-batch holds for its backward. logits: "
        "positions x V, twice (gradient). activations: 9 widths and 4 feed-forward widths per layer and position. Not "
        "counted: Python, libraries, rollouts."
    )


def seconds(planned: Plan, device: Device) -> dict[str, float]:
    """Seconds of one cycle by part, at `UTILISATION` of the device's figure; without rewards, decoding, optimizer."""
    rows, sizes, speed = planned.rows, planned.sizes, UTILISATION * device.flops
    flops = {"rollout": sizes.rollout_flops(rows["rollout"], planned.rollout_positions)}
    flops["rollout"] += sizes.reused_flops(planned.reused.computed, planned.reused.wanted)
    flops["score"] = (rows["old"] + rows["reference"]) * sizes.row_flops()
    flops["update"] = rows["new"] * sizes.new_cost() * sizes.row_flops()
    return {part: count / speed for part, count in flops.items()}


def evaluation_seconds(planned: Plan, device: Device) -> float:
    """Seconds of one evaluation while training, as `seconds` estimates them."""
    if planned.evaluation is None:
        return 0.0
    flops = planned.sizes.rollout_flops(planned.evaluation.rows, planned.evaluation.positions)
    return flops / device.processes / (UTILISATION * device.flops)


def _print_devices(by_device: dict[Device, Plan], console: Console) -> None:
    """Memory and time on one device of each kind."""
    table = _table("memory of one device, and time of a cycle; estimates", "", *(d.name for d in by_device))
    plans = list(by_device.values())
    for part in plans[0].memory:
        table.add_row(part, *(f"{p.memory[part] / 1e9:.1f} GB" for p in plans))
    peaks = [p.peak_memory() for p in plans]
    share = [f"{peak / 1e9:.1f} of {d.memory / 1e9:.0f} GB" for d, peak in zip(by_device, peaks, strict=True)]
    table.add_row("peak", *share)
    for part in ("rollout", "score", "update"):
        table.add_row(f"{part}, s", *(f"{seconds(p, d)[part]:.1f}" for d, p in by_device.items()))
    together = [sum(seconds(p, d).values()) for d, p in by_device.items()]
    table.add_row("cycle, s", *(f"{s:.1f}" for s in together))
    cycles, evaluation = plans[0].settings.loop.cycles, plans[0].evaluation
    totals = [s * cycles for s in together]
    if evaluation:
        each = [evaluation_seconds(p, d) for d, p in by_device.items()]
        table.add_row("evaluation, s", *(f"{s:.1f}" for s in each))
        totals = [total + s * evaluation.times for total, s in zip(totals, each, strict=True)]
    table.add_row(f"{cycles} cycles, days", *(f"{total / 86400:.1f}" for total in totals))
    console.print(table)
    for planned, device in zip(plans, by_device, strict=True):
        if planned.peak_memory() > device.memory:
            console.print(
                f"DOES NOT FIT {device.name}: loop.micro_batches, model.activation_checkpointing and "
                "rollout.prompts_per_cycle change the memory"
            )
    sizes = plans[0].sizes
    if sizes.source:
        print(f"sizes    {sizes.source}")
    print(f"row      {sizes.sequence} positions, {sizes.row_flops() / 1e12:.1f} TFLOP forward;", end=" ")
    print(f"a new row costs {sizes.new_cost()} forwards")
    print(f"time     {UTILISATION:.0%} of the maker's bfloat16 figure, assumed; no rewards, no decoding")
    print(f"memory   for {' and '.join(str(p.rows_at_once) for p in plans)} rows held at once; without fragmentation")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", "stage") else "right")
    return table
