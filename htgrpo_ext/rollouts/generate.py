"""Rollouts: finished images for prompts, with the unmask step of every token.

B rollouts, N image tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from htgrpo_ext.backbones.base import Denoiser
from htgrpo_ext.core.drawing import Drawing
from htgrpo_ext.core.estimator import SharedForward
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.reuse import ReusingDrawing
from htgrpo_ext.core.sampler import SAMPLERS, Rollout
from htgrpo_ext.core.views import Prompts, RolloutBatch
from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.rollouts.settings import Sampling


def generate(
    backbone: Denoiser,
    forward: SharedForward,
    prompts: Prompts,
    draws: Draws,
    settings: Sampling,
    refresh: int = 1,
) -> Rollout:
    """Sample one image for each of B prompt rows.

    draws     the noise of these rows
    settings  guidance above 0 runs every canvas a second time without its prompt
    refresh   above 1: only every so many steps all is computed (`rollout.reuse`), for as many images at a time as a
              batch has rows, so that what is kept does not grow with the images

    Raises UserError if a batch does not fit into the device's memory.
    """
    tokens, nobody = backbone.num_image_tokens, backbone.unconditional()
    options = {} if settings.sampler == "emerge" else {"temperature": settings.temperature}
    count, device = len(prompts.ids_BL), prompts.ids_BL.device

    def of_images(part: slice) -> Rollout:
        rows = prompts.rows(part)
        law = forward, rows, nobody, settings.guidance, settings.guided_steps
        return SAMPLERS[settings.sampler](
            Drawing(*law) if refresh == 1 else ReusingDrawing(*law, tokens, refresh),
            lambda step: draws.uniform("rollout", step, shape=(2, tokens))[part],
            (len(rows.ids_BL), tokens),
            settings.steps,
            device=device,
            **options,
        )

    with memory_named("rollouts", forward):
        if refresh == 1:
            return of_images(slice(0, count))
        parts = forward.batch_size.batches(count, device, of_images)
        return Rollout(*map(torch.cat, zip(*parts, strict=True)))


@contextmanager
def memory_named(
    part: str, forward: SharedForward, advice: str = "", error_type: type[UserError] = UserError
) -> Iterator[None]:
    """Inside, an error for want of the device's memory becomes a UserError that names the part of the run.

    advice  what helps beside a smaller batch
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = "not even one row fits" if forward.batch_size.is_auto else "try auto"
        message = f"{part}: out of memory ({one_line(error, 100)}); loop.batch_size: {size}{advice}"
        raise error_type(message) from None


def mean_entropy(rollout: Rollout, batch: RolloutBatch) -> tuple[float, float]:
    """Mean entropy in nats of the structure tokens' sampling distributions, and of the refinement tokens' (Eq. 22)."""
    structure_BN = batch.rank_BN <= batch.structure_count
    return rollout.entropy_BN[structure_BN].mean().item(), rollout.entropy_BN[~structure_BN].mean().item()
