"""What `htgrpo reproduce` will cost, from the estimates of `htgrpo plan`: GPU hours, disk, images."""

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from htgrpo_ext.backbones.sizes import FLOAT, Sizes
from htgrpo_ext.config import near
from htgrpo_ext.core.sampler import cosine_masked_share
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.workflow.plan import UTILISATION, Device, devices_for, evaluation_seconds, plan, seconds
from htgrpo_ext.workflow.stages import Generate, Score, Stage, Train

KEPT = 7  # copies of what is trained in a run's folder: two checkpoints with AdamW's two moments each, and the model
MOST_BYTES = 16 * 16 * 3  # of a PNG per image token: each backbone's is 16 x 16 pixels


def training_hours(settings: RunSettings, device: Device) -> float:
    """Hours of all its accelerators together for a run, without rewards, decoding and optimizer."""
    planned = plan(settings, device.processes)
    took = sum(seconds(planned, device).values()) * settings.loop.cycles
    if planned.evaluation:
        took += evaluation_seconds(planned, device) * planned.evaluation.times
    return took * device.processes / 3600


def painting_hours(settings: RunSettings, sizes: Sizes, images: int, device: Device) -> float:
    """Hours of one accelerator for the forwards that images take; decoding is not counted."""
    sampling = settings.sampling
    assert sampling is not None
    passes = 1 + len(sampling.guided_steps) / sampling.steps
    masked = sum(cosine_masked_share(step / sampling.steps) for step in range(sampling.steps))
    wanted = sizes.num_image_tokens * (
        1 if sampling.sampler == "emerge" else masked
    )  # MaskGIT draws all that are masked
    flops = passes * sizes.rollout_flops(images * sampling.steps, round(images * wanted))
    return flops / (UTILISATION * device.flops) / 3600


def run_bytes(sizes: Sizes) -> int:
    """Bytes of a run's folder, but for pictures and logs."""
    return KEPT * sizes.trained * (FLOAT if sizes.adapters else sizes.element)


def print_cost(stages: Sequence[Stage], console: Console) -> None:
    """Print the table. A method's cycle is simulated, which takes up to a minute each."""
    trains = [stage for stage in stages if isinstance(stage, Train)]
    sets = [stage for stage in stages if isinstance(stage, Generate)]
    scores = [stage for stage in stages if isinstance(stage, Score)]
    settings = trains[0].run.settings
    sizes = settings.model.sizes()
    images = sum(stage.images for stage in sets)
    devices = devices_for(settings)
    costs = Table(title="what it costs, estimated", title_justify="left", box=box.SIMPLE_HEAD)
    costs.add_column("")
    for heading in (*(f"GPU hours, {d.name}" for d in devices), "disk"):
        costs.add_column(heading, justify="right")
    runs = Counter(train.label for train in trains)
    for label, count in runs.items():
        run = next(train.run.settings for train in trains if train.label == label)
        hours = [f"{count * training_hours(run, d):,.0f}" for d in devices]
        costs.add_row(f"train {label}: {count} x {run.loop.cycles} cycles", *hours, _size(count * run_bytes(sizes)))
    hours = [f"{painting_hours(settings, sizes, images, d):,.0f}" for d in devices]
    disk = f"at most {_size(images * settings.model.num_image_tokens * MOST_BYTES)}"
    costs.add_row(f"generate: {len(sets)} sets, {images:,} images", *hours, disk)
    console.print(costs)
    where = "htgrpo plan has the assumptions." if devices else "For this model time is not estimated."
    console.print(
        f"Not counted: {len(scores)} scorings, reward servers beside the training, decoding. {where}", highlight=False
    )
    scripts = dict.fromkeys(near(word) for stage in scores for word in stage.words() if word.endswith(".sh"))
    if scripts:
        console.print(
            f"Scorers make their environments when they are first run, or before by --setup-only: {', '.join(scripts)}",
            highlight=False,
        )


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
