"""Tiny runs of MMaDA and Lumina-DiMOO: one prompt, two rollouts, small images where the model allows it."""

from pathlib import Path

from helpers.paths import CONFIGS
from htgrpo_ext.config import load_settings
from htgrpo_ext.settings import RunSettings

TINY = [
    "model.lora.rank=2",
    "rollout.prompts_per_cycle=1",
    "rollout.rollouts_per_prompt=2",
    "rollout.steps=2",
    "loop.micro_batches=1",
    "loop.updates_per_rollout=2",
    "loop.learning_rate=1.0e-3",
    "loop.cycles=2",
    "log.tensorboard=false",
    "prompts=[{format: micro}]",
    "reward.terms=[{name: clip, weight: 1.0}]",
    "eval=null",
]
LAYOUT = {"mmada": ["model.prompt_length=12"], "lumina": ["model.height=96", "model.width=64"]}


def settings_of(model: str, method: str, folder: Path, out: Path, *more: str) -> RunSettings:
    """Settings of a tiny run of MODEL=mmada or lumina on a checkpoint of `llada_checkpoints`: K = 2, no benchmark."""
    weights = [f"model.checkpoint={folder}", f"model.vq_checkpoint={folder}", f"out={out}"]
    budget = ["method.budget={global: 1, structure: 1, refinement: 0}"] if method == "htgrpo" else []
    files = [CONFIGS / "model" / f"{model}.yaml", CONFIGS / "method" / f"{method}.yaml"]
    return load_settings(files, [*TINY, *LAYOUT[model], *weights, *budget, *more])
