"""Tiny runs of the native loop: a random model of a few thousand weights, two prompts, three rollouts."""

import json
from pathlib import Path

from helpers.paths import CONFIGS
from htgrpo_ext.backbones.micro.model import MicroConfig, MicroModel
from htgrpo_ext.config import load_settings
from htgrpo_ext.core.randomness import derived_seed
from htgrpo_ext.micro import world
from htgrpo_ext.settings import RunSettings

TINY = (
    "rollout.prompts_per_cycle=2",
    "rollout.rollouts_per_prompt=3",
    "rollout.steps=3",
    "loop.cycles=1",
    "loop.updates_per_rollout=2",
    "loop.warmup_updates=0",
    "loop.learning_rate=1.0e-3",
    "eval.prompts_per_task=1",
    "eval.images_per_prompt=1",
    "log.tensorboard=false",
)


def tiny_checkpoint(folder: Path) -> Path:
    """A random MicroModel in the real format."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(derived_seed("tiny"))
        config = MicroConfig(codebook_size=world.CODEBOOK_SIZE, hidden_size=32, num_layers=2, num_heads=2, ffn_size=48)
        MicroModel(config).save_pretrained(folder)
    return folder


def even_codes(prompts, codes_BN, names):
    """The share of even codes as reward, which differs between a random model's images; for `score_codes`."""
    return {name: (codes_BN % 2 == 0).float().mean(-1) for name in names}


def tiny_overrides(checkpoint: Path, out: Path, *more: str) -> list[str]:
    return [*TINY, f"model.checkpoint={checkpoint}", f"out={out}", *more]


def tiny_settings(method: str, checkpoint: Path, out: Path, *more: str) -> RunSettings:
    """Settings of a tiny run: K = 2, for HT-GRPO one global and one structure update."""
    budget = ("method.budget={global: 1, structure: 1, refinement: 0}",) if method == "htgrpo" else ()
    files = [CONFIGS / "model" / "micro.yaml", CONFIGS / "method" / f"{method}.yaml"]
    return load_settings(files, tiny_overrides(checkpoint, out, *budget, *more))


def records(folder: Path, kind: str) -> list[dict]:
    """The lines of a run's metrics.jsonl of one kind: "update" or "cycle"."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]
