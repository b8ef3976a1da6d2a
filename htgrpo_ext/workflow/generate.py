"""Images of a benchmark's prompts, in its layout, with a record of what made them.

An item (a prompt with its I images) is painted alone and written whole. Its noise depends on the seed, the prompt's
place in the benchmark and the image's number. So batch size, number of processes, kills and resumptions change no
image.

B = I images, N image tokens.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.backbones.settings import ModelSection
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.errors import UserError
from htgrpo_ext.files import held
from htgrpo_ext.imagesets import SUITES, suite_named
from htgrpo_ext.imagesets.base import IMAGES, Item, Suite
from htgrpo_ext.imagesets.digests import adapter_digest, checkpoint_digest
from htgrpo_ext.imagesets.pngs import sweep
from htgrpo_ext.imagesets.record import Record, differences, read_record, write_record
from htgrpo_ext.imagesets.sets import describe_set, first_of_each_task, items_digest, missing_items, write_items
from htgrpo_ext.pixels import to_image
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.rollouts.settings import BenchmarkSampling
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.progress import counted

MARKER = ".htgrpo-images"  # in SET; locked while images are painted there
ADVICE = "give another --out"
PATIENCE = timedelta(days=7)  # processes wait for the slowest; a launcher ends them if one of them dies
Value = TypeVar("Value")


def suite_and_file(bench: str, prompts: Path | None) -> tuple[Suite, Path | None]:
    """The suite that --bench names, and its prompt file. Raises UserError for a name that is no suite and no file."""
    if bench not in [suite.name for suite in SUITES] and Path(bench).is_file():
        if prompts is not None:
            raise UserError(f"--bench {bench} is a file of prompts already; leave out --prompts")
        return suite_named("file"), Path(bench)
    return suite_named(bench), prompts


def generate_set(
    settings: RunSettings,
    bench: str,
    out: Path,
    adapter: Path | None = None,
    label: str | None = None,
    prompts: Path | None = None,
    prompt_key: str = "prompt",
    limit: int | None = None,
) -> str | None:
    """Paint a benchmark's prompts into the folder `out`, or what is missing of them there.

    bench       name of a suite, or a file of prompts
    adapter     folder of an adapter to fold into the model
    label       the row's name in tables; by default the folder's name
    prompts     the benchmark's prompt file
    prompt_key  under which its lines have the text that is asked
    limit       only so many prompts of each task

    Returns the complete set in a few words; None on all processes but the first.

    Raises UserError, before a model is loaded, for prompts that are not the benchmark's or that the model cannot read,
    for a folder that holds anything else, such as a set of another record, or where another command is painting.
    """
    suite, prompts = suite_and_file(bench, prompts)
    if settings.sampling is None:
        raise UserError("the settings have no section `sampling`, how images are drawn for a benchmark (configs/model)")
    everything = suite.items(prompts, prompt_key)
    items = first_of_each_task(everything, limit)
    refuse_unreadable(settings.model, items)
    processes = PartialState(timeout=PATIENCE)
    first = processes.is_main_process
    with held(out, MARKER, "set of images", "command", ADVICE) if first else nullcontext(), torch.no_grad():
        begun = None
        if first:
            prompts_made = dict(prompts=items_digest(items), items=len(items), prompt_key=prompt_key, limit=limit)
            wanted = record_of(settings.model, settings.sampling, suite, adapter, label or out.absolute().name)
            begun = begin(out, suite, items, replace(wanted, **prompts_made))
        record, missing = _from_first(begun)
        if missing:
            backbone = load_backbone(settings.model, str(processes.device), frozen=True, adapter=adapter)
            backbone.model.eval()
            record = _from_first(opened(out, record, items, suite, backbone) if first else None)
            places = {item.key: place for place, item in enumerate(everything)}
            forward = SharedForward(backbone.image_logits, backbone.mask_id, settings.loop.batch_size)
            mine = missing[processes.process_index :: processes.num_processes]
            share = f" (one of {processes.num_processes} shares)" if processes.num_processes > 1 else ""
            with counted(f"paint {suite.title}", len(mine), f"prompts{share}", first) as advance:
                for item in mine:
                    pictures = paint(backbone, forward, settings.sampling, item, places[item.key], suite)
                    suite.save(out / IMAGES, item, pictures, record.stamp)
                    advance()
            processes.wait_for_everyone()
        return describe_set(out) if first else None


def _from_first(value: Value | None) -> Value:
    """The first process's value, on all processes."""
    return cast(Value, broadcast_object_list([value])[0])


def record_of(
    model: ModelSection, sampling: BenchmarkSampling, suite: Suite, adapter: Path | None, label: str
) -> Record:
    """What will make the images, of size (0, 0) and without the prompts. Raises UserError if weights are missing."""
    return Record(
        bench=suite.name,
        prompts="",
        items=0,
        images_per_prompt=suite.images_per_prompt,
        seed=sampling.seed,
        size=(0, 0),
        sampler=sampling.model_dump(mode="json", exclude={"seed"}, exclude_defaults=True),  # as of sets without them
        model=model.model_dump(mode="json"),
        weights=checkpoint_digest([model.checkpoint, getattr(model, "vq_checkpoint", None)]),
        adapter=adapter_digest(adapter.expanduser()) if adapter else None,
        label=label,
    )


def refuse_unreadable(model: ModelSection, items: Sequence[Item]) -> None:
    """Encode every prompt once. Raises UserError, with the item's key, for one that the model cannot read."""
    encode = model.prompt_encoder()
    try:
        encode([item.prompt for item in items])
    except UserError:
        for item in items:
            try:
                encode([item.prompt])
            except UserError as error:
                raise UserError(f"{item.key}: {error}") from None
        raise


def begin(out: Path, suite: Suite, items: Sequence[Item], wanted: Record) -> tuple[Record, list[Item]]:
    """The set's record, of size (0, 0) if there is none yet, and the items that are missing. Leftovers are removed.

    Raises UserError if another set is there, or if its images are not whole.
    """
    sweep(out)
    if not (out / "record.json").exists():
        if any((out / IMAGES).glob("*")):
            raise UserError(f"{out / IMAGES}: there are images, but no record.json; {ADVICE}")
        return wanted, list(items)
    record = read_record(out)
    if differ := "; ".join(differences(replace(wanted, size=record.size), record)):
        raise UserError(f"{out}: the set there has {differ}; {ADVICE}, or the settings of its record.json")
    return record, missing_items(out, suite, items, record)


def opened(out: Path, record: Record, items: Sequence[Item], suite: Suite, backbone: Backbone) -> Record:
    """The record with the size of the model's images, written with the items, if it was not there yet.

    The size is that of a blank image; a decoder that is missing is an error now. Raises UserError if the benchmark's
    scorer cannot read such images.
    """
    if record.size[0]:
        return record
    device = next(backbone.model.parameters()).device
    blank_BN = torch.zeros(1, backbone.num_image_tokens, dtype=torch.int64, device=device)
    height, width = backbone.decode(blank_BN).shape[-2:]
    if suite.only_square and height != width:
        raise UserError(f"{suite.title}'s scorer reads square images only, not {width} x {height} pixels (model)")
    record = replace(record, size=(width, height))
    write_items(out, items)
    write_record(out, record)
    return record


def paint(
    backbone: Backbone, forward: SharedForward, sampling: BenchmarkSampling, item: Item, place: int, suite: Suite
) -> list:
    """The I pictures of an item.

    place  of the item in the whole benchmark: its noise depends on it
    """
    rows = backbone.encode_prompts([item.prompt]).repeat(suite.images_per_prompt)
    draws = Draws(sampling.seed, "evaluation", [place], suite.images_per_prompt)  # MicroEval's of a training run
    pixels_B3HW = backbone.decode(generate(backbone, forward, rows, draws, sampling).codes_BN)
    if not bool(torch.isfinite(pixels_B3HW).all()):
        raise UserError(f"{item.key}: the model painted pixels that are not finite numbers (model.dtype)")
    return [to_image(pixels) for pixels in pixels_B3HW]
