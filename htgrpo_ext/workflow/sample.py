"""Images for prompts, as PNGs whose metadata says how they were made; with `trace`, also the order of their tokens.

B images, N image tokens, H rows of W.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.order import generation_rank
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.errors import UserError
from htgrpo_ext.files import require_folder
from htgrpo_ext.pixels import to_image
from htgrpo_ext.report.figures import contact_sheet
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.settings import RunSettings

GREY = 128  # the level of tokens that are still masked
FRAME_WIDTH, COLUMNS = 160, 6  # pixels of a canvas in the strip, canvases in a row


def sample(
    settings: RunSettings,
    prompts: Sequence[str],
    count: int,
    seed: int,
    out: Path,
    adapter: Path | None = None,
    trace: bool = False,
) -> list[Path]:
    """Write `count` images for each prompt into `out`. Returns their paths, prompt by prompt.

    Raises UserError, before a model is loaded, if `out` cannot be written to or holds another picture of that name, and
    for a prompt that the model cannot read.

    adapter  folder of an adapter to fold into the model first
    trace    also write NAME.order.png, the generation-order rank of each token from dark (first) to bright (last),
             and NAME.steps.png, the canvas after each step; masked tokens are grey

    The noise of an image depends on the seed and on its prompt's place. More prompts or another batch size change no
    image.
    """
    paths = [out / f"{q:03d}-{_slug(text)}-{i}.png" for q, text in enumerate(prompts) for i in range(count)]
    about = [_about(settings, text, seed, adapter, q, i) for q, text in enumerate(prompts) for i in range(count)]
    require_folder(out)
    for path, made in zip(paths, about, strict=True):
        if path.exists() and _about_of(path) != made:
            raise UserError(f"{path}: another picture is there; give another --out, or the options it was made with")
    settings.model.prompt_encoder()(prompts)
    backbone = load_backbone(settings.model, str(PartialState().device), frozen=True, adapter=adapter)
    backbone.model.eval()
    backbone.prepare_decoder()  # a missing decoder is an error now, not after a long rollout
    forward = SharedForward(backbone.image_logits, backbone.mask_id, settings.loop.batch_size)
    rows = backbone.encode_prompts(prompts).repeat(count)
    rollout = generate(backbone, forward, rows, Draws(seed, "sample", range(len(prompts)), count), settings.rollout)
    pixels_B3HW = backbone.decode(rollout.codes_BN).cpu()
    rank_BN = generation_rank(rollout.unmask_step_BN, settings.method.ties).cpu()
    out.mkdir(parents=True, exist_ok=True)
    for b, path in enumerate(paths):
        image, information = to_image(pixels_B3HW[b]), PngInfo()
        for key, value in about[b].items():
            information.add_text(key, value)
        image.save(path, pnginfo=information)
        if trace:
            order_image(rank_BN[b], backbone.grid, image.size).save(path.with_suffix(".order.png"))
            strip(image, rollout.unmask_step_BN[b].cpu(), backbone.grid, settings.rollout.steps).save(
                path.with_suffix(".steps.png")
            )
    return paths


def _slug(prompt: str) -> str:
    return re.sub(r"\W+", "-", prompt).strip("-")[:40] or "empty"


def _about(
    settings: RunSettings, prompt: str, seed: int, adapter: Path | None, place: int, image: int
) -> dict[str, str]:
    """What a picture's file says about itself. Raises UserError for a prompt that is no text."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError(f"prompt {prompt!r}: not UTF-8 text") from None
    rollout = settings.rollout.model_dump(mode="json", exclude={"reuse"}, exclude_defaults=True)  # drawn without reuse
    made = {"model": settings.model.model_dump(mode="json"), "rollout": rollout}
    made |= {"adapter": str(adapter) if adapter else None, "image": image, "place": place}
    return {"prompt": prompt, "seed": str(seed), "settings": json.dumps(made)}


def _about_of(path: Path) -> dict[str, str] | None:
    try:
        with Image.open(path) as image:
            return dict(getattr(image, "text", {}))
    except OSError:
        return None


def order_image(rank_N: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """A picture of `size` pixels (width, height): ranks int [N], 1..N, as colours from dark to bright."""
    from matplotlib import colormaps

    share_HW = (rank_N.view(grid).numpy() - 1) / max(rank_N.numel() - 1, 1)
    colours = (colormaps["viridis"](share_HW)[..., :3] * 255).round().astype(np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)


def strip(image: Image.Image, step_N: Tensor, grid: tuple[int, int], steps: int) -> Image.Image:
    """The canvas after each step, with the step's number and its count of visible tokens; step_N int [N], from 0."""
    step_HW, frames, captions = step_N.view(grid).numpy(), [], []
    for step in range(steps):
        there_HW = step_HW <= step
        mask = Image.fromarray((there_HW * 255).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
        frame = Image.composite(image, Image.new("RGB", image.size, (GREY,) * 3), mask)
        frames.append(frame.resize((FRAME_WIDTH, round(FRAME_WIDTH * image.height / image.width))))
        captions.append(f"{step + 1}: {there_HW.sum()} tokens")
    return contact_sheet(frames, min(COLUMNS, steps), captions)
