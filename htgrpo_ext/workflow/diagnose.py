"""How good is each method's estimator for this model, before anything is trained? See docs/diagnose.md.

Rollouts of a few prompts are drawn by the emerge sampler, twice, and scored by the run's rewards. Emerge decides which
tokens it unmasks without looking at them, so the law of a trajectory is a product of known ones and its gradient is
exact. Every method's gradient at its first updates is compared with it.

P prompts, G rollouts per prompt and half, B = 2P*G rollouts.
"""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from rich.console import Console

from htgrpo_ext.backbones import load_backbone
from htgrpo_ext.backbones.base import Backbone
from htgrpo_ext.backbones.policy import with_adapters
from htgrpo_ext.core.diagnosis import rank_buckets
from htgrpo_ext.core.gradients import Rollouts
from htgrpo_ext.core.order import generation_rank
from htgrpo_ext.core.randomness import Draws
from htgrpo_ext.core.sampler import Rollout
from htgrpo_ext.core.stages import structure_count
from htgrpo_ext.core.views import RolloutBatch
from htgrpo_ext.errors import UserError
from htgrpo_ext.files import new_folder, write_atomically
from htgrpo_ext.report.diagnosis import EXPLAINED, about, as_text, grids, sentences
from htgrpo_ext.report.diagnosis_figure import write_figure
from htgrpo_ext.report.tables import terminal
from htgrpo_ext.rewards.mix import Rewards
from htgrpo_ext.rollouts.generate import generate
from htgrpo_ext.rollouts.settings import RolloutSettings
from htgrpo_ext.settings import RunSettings
from htgrpo_ext.train.progress import counted
from htgrpo_ext.train.run import prompt_sources
from htgrpo_ext.workflow.contexts import token_laws
from htgrpo_ext.workflow.estimators import Study, compared, examine, forwards, study_of

BUCKETS = 4  # parts of the generation order whose gradients are compared
SIZE = 10_000_000  # bytes of the folder, at most


def diagnose(runs: Sequence[RunSettings], prompts: int, adapter: Path | None, out: Path) -> dict:
    """Compare the estimators of several runs that differ in their method, and write `out`.

    runs     settings with those of `settings_of`; all but the method and its loop are read from the first
    prompts  P
    adapter  folder of an adapter to fold into the model first

    Returns what diagnosis.json holds. Raises UserError, before a model is loaded, for rollouts that are not exact, a
    folder that is in use, weights that are missing, prompts that the model cannot read and rewards that do not answer;
    later, if no group has spread.
    """
    settings, began = runs[0], time.monotonic()
    refuse_inexact(settings.rollout)
    if absent := settings.model.absent(settings.reward.reads_pixels):
        raise UserError("\n".join(absent))
    with new_folder(out, SIZE) as folder:
        source = prompt_sources(settings)
        source.check(settings.model.prompt_encoder())
        asked = source.cycle(0)[:prompts]
        rewards = Rewards(settings.reward, PartialState(), settings.rollout.rollouts_per_prompt)
        rewards.start()
        backbone = trained_backbone(settings, adapter)
        with counted("diagnose", len(runs) + 2, "parts", True) as advance:
            study, reward = roll_out(settings, backbone, asked, rewards)
            exact_update = study.exact_update()
            found: dict = {
                "format": 1,
                "model": {"name": settings.model.name, "checkpoint": str(settings.model.checkpoint)},
                "adapter": str(adapter) if adapter else None,
                "prompts": [prompt["prompt"] for prompt in asked],
                "rollouts_per_prompt": settings.rollout.rollouts_per_prompt,
                "tokens": backbone.num_image_tokens,
                "sampler": {key: getattr(settings.rollout, key) for key in ("sampler", "steps", "guidance")},
                "seed": settings.seed,
                "weights": {"trained": study.sketch.count, "compared": study.sketch.size},
                "clip_epsilon": settings.loop.clip_epsilon,
                "learning_rate": settings.loop.learning_rate,
                "reward": reward,
                "laws": token_laws(study, exact_update, settings.loop.clip_epsilon),
            }
            advance()
            exact = study.gradient(study.exact, exact_update, "rollout", by_rank=True)
            found["exact"] = compared(exact.whole_XD, exact.whole_XD)
            found["exact"]["by_rank"] = [compared(part_XD, exact.whole_XD) for part_XD in exact.buckets]
            advance()
            found["methods"] = []
            for run in runs:
                found["methods"] += examine(study, run, exact)
                advance()
        found["rows"] = rows_of(study)
        found["seconds"] = round(time.monotonic() - began, 1)
        found["sentences"] = sentences(found)
        write_atomically(folder / "diagnosis.json", json.dumps(_without_nan(found), indent=1) + "\n")
        write_atomically(folder / "diagnosis.md", as_text(found))
        write_figure(found, folder / "diagnosis.png")
    return found


def refuse_inexact(rollout: RolloutSettings) -> None:
    """Raises UserError for rollouts of another law than the one whose gradient is taken."""
    for key in ("guidance_interval", "reuse"):
        if getattr(rollout, key) is not None:
            raise UserError(
                f"the exact gradient is that of exact rollouts, one law in all steps; leave out rollout.{key}"
            )


def print_diagnosis(found: dict, out: Path) -> None:
    """Print the tables, where the files are, and last what it means."""
    console = Console(highlight=False)
    print(about(found))
    for grid in grids(found):
        for table in terminal(grid, console.width):
            console.print(table)
    print(EXPLAINED)
    print(f"{out / 'diagnosis.png'}\n{out / 'diagnosis.json'}")
    print("\n".join(found["sentences"]))


def trained_backbone(settings: RunSettings, adapter: Path | None) -> Backbone:
    """The model with the weights that the run would train: all, or fresh adapters (over a folded one)."""
    backbone = load_backbone(settings.model, str(PartialState().device), frozen=True, adapter=adapter)
    if lora := settings.model.lora_keywords():
        backbone.model = with_adapters(backbone.model, lora, settings.seed)
        backbone.route_through(backbone.model)
    backbone.model.eval()
    if settings.reward.reads_pixels:
        backbone.prepare_decoder()
    return backbone


def roll_out(
    settings: RunSettings, backbone: Backbone, asked: Sequence[dict], rewards: Rewards
) -> tuple[Study, dict[str, float | int]]:
    """Both halves of the rollouts of P prompts with their advantages; and the reward in a few numbers."""
    G, P = settings.rollout.rollouts_per_prompt, len(asked)
    prompts = [prompt for prompt in [*asked, *asked] for _ in range(G)]
    rows = backbone.encode_prompts([prompt["prompt"] for prompt in prompts])
    exact, _ = forwards(settings, backbone)
    rollouts = [
        generate(
            backbone,
            exact,
            rows.rows(slice(half * P * G, (half + 1) * P * G)),
            Draws(settings.seed, "diagnose", range(half * P, (half + 1) * P), G),
            settings.rollout.model_copy(update={"guidance": 0.0}),  # the forward has it
        )
        for half in range(2)
    ]
    rollout = Rollout(*map(torch.cat, zip(*rollouts, strict=True)))
    judged = rewards.score(prompts, rollout.codes_BN, partial(backbone.decode, rollout.codes_BN))
    flat = int((judged.advantage_B.view(-1, G) == 0).all(1).sum())
    if flat == 2 * P:
        raise UserError(
            f"none of the {2 * P} groups of {G} rollouts has a spread of rewards, so every gradient is zero; "
            "give more --prompts, or another reward"
        )
    rank_BN = generation_rank(rollout.unmask_step_BN, settings.method.ties)
    batch = RolloutBatch(
        rollout.unmask_step_BN,
        rank_BN,
        rows.words_BL,
        structure_count(rank_BN.shape[1], settings.method.structure_ratio),
    )
    buckets = rank_buckets(rank_BN, min(BUCKETS, rank_BN.shape[1]))
    study = study_of(settings, backbone, Rollouts(rows, rollout.codes_BN, judged), rollout, batch, buckets)
    study.exact.rows += exact.rows
    reward = {"mean": float(judged.reward_B[judged.kept_B].mean()), "groups": 2 * P, "without_spread": flat}
    return study, reward


def rows_of(study: Study) -> dict[str, int]:
    """Rows that the model computed: `forward` without and `gradient` with a graph. A guided row counts twice."""
    forward = gradient = 0
    for each, passes in ((study.plain, 1), (study.exact, 2)) if study.plain is not study.exact else ((study.plain, 1),):
        gradient += passes * each.rows["new"]
        forward += passes * sum(count for kind, count in each.rows.items() if kind != "new")
    return {"forward": forward, "gradient": gradient}


def _without_nan(value):
    """NaN as null, so that the file is JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and value != value else value
