"""A run's folder as training leaves it, made up: small, quick, and with numbers a test can predict."""

import json
from pathlib import Path
from random import Random

import numpy as np
import torch
import yaml
from PIL import Image

from helpers.paths import ROOT
from htgrpo_ext.files import write_atomically
from htgrpo_ext.micro.decoder import decode_codes
from htgrpo_ext.micro.verifier import verify
from htgrpo_ext.micro.world import draw_scene, split_prompts
from htgrpo_ext.pixels import to_image
from htgrpo_ext.settings import RunSettings

STAGES = ["global"] * 2 + ["structure"] * 4 + ["refinement"] * 2
FORWARDS = {"rollout": 864, "old": 0, "reference": 12, "new": 96}
SECONDS = {"rollout": 1.5, "reward": 0.25, "score": 1.0, "update": 2.0}


def settings_of(folder: Path, **changes) -> RunSettings:
    """Settings of a tiny run; `changes` replace whole sections or fields."""
    model = yaml.safe_load(ROOT.joinpath("configs/model/micro.yaml").read_text())
    return RunSettings(**{**model, "method": {"name": "htgrpo"}, "out": folder, **changes})


def save_evaluation(folder: Path, prompts: list[dict], images: int, noise: dict[str, float], seed: int = 0) -> None:
    """eval/prompts.json and eval/<name>.npz, scenes drawn with the noise given per name."""
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    (folder / "eval" / "prompts.json").write_text(json.dumps(prompts))
    for name, wrong in noise.items():
        rng = Random(f"{name}-{seed}")
        codes = [[draw_scene(prompt, rng, wrong) for _ in range(images)] for prompt in prompts]
        judged = [[verify(p, c) for c in row] for p, row in zip(prompts, codes, strict=True)]
        np.savez_compressed(
            folder / "eval" / f"{name}.npz",
            kept=np.array(codes, dtype=np.uint16),
            correct=np.array([[v.correct for v in row] for row in judged]),
            partial=np.array([[v.partial for v in row] for row in judged], dtype=np.float32),
            reasons=np.array([[v.reason for v in row] for row in judged]),
        )


def metrics(cycles: int, rng: np.random.Generator) -> list[dict]:
    """Lines of metrics.jsonl with curves that look like a run's."""
    lines: list[dict] = []
    for cycle in range(cycles):
        for k, stage in enumerate(STAGES):
            lines.append(
                {"kind": "update", "cycle": cycle, "update": k, "step": cycle * 8 + k + 1, "stage": stage}
                | {"support": float([64, 32, 19, 16, 13, 10, 45, 23][k]), "loss": rng.normal() / 20}
                | {"kl": abs(rng.normal(1 + k, 0.5)) * (cycle + 1) * 1e-4, "learning_rate": 3e-4}
                | {"ratio_mean": 1 + k * 2e-3 * rng.normal(), "ratio_max": 1 + k * 0.1 * rng.random()}
                | {"clip_low": k * 0.004 * rng.random(), "clip_high": k * 0.002 * rng.random()}
                | {"grad_norm": (1.5 - 0.1 * k) * rng.random() + 0.2}
            )
        reward = 0.55 + 0.3 * cycle / cycles + rng.normal() / 40
        lines.append(
            {"kind": "cycle", "cycle": cycle, "reward_mean": reward, "reward_std": 0.33, "verdict_std": 0.5}
            | {"verdict_mean": reward - 0.12, "partial_mean": reward + 0.12, "partial_std": 0.2, "groups": 12}
            | {"zero_std_groups": int(rng.integers(4)), "entropy_structure": 1.9 - cycle / cycles}
            | {"entropy_refinement": 0.9 - 0.4 * cycle / cycles, "forwards": FORWARDS, "seconds": SECONDS}
        )
    return lines


def fabricate(folder: Path, settings: RunSettings | None = None, prompts_per_task: int = 2, cycles: int = 3) -> Path:
    """A whole run's folder, less summary.json and report.html; no evaluation if the settings have none."""
    settings = settings or settings_of(folder)
    write_atomically(folder / "config.yaml", yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    held_out = split_prompts()[1]
    if settings.eval:
        prompts = [p for t in range(6) for p in held_out[40 * t : 40 * t + prompts_per_task]]
        save_evaluation(folder, prompts, 4, {"base": 0.6, "trained": 0.25}, settings.seed)
    rng = np.random.default_rng(settings.seed)
    lines = metrics(cycles, rng)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rank = rng.permutation(64) + 1
    codes = torch.tensor([draw_scene(held_out[170], Random(3), 0.0)])
    save_rollout(folder, held_out[170]["prompt"], to_image(decode_codes(codes)[0]), rank, (8, 8), rng)
    return folder


def save_rollout(
    folder: Path, prompt: str, picture: Image.Image, rank: np.ndarray, grid: tuple[int, int], rng: np.random.Generator
) -> None:
    """rollout.png, rollout.npz and rollout.json, with supports that shrink within their stage."""
    chosen = {"global": rank > 0, "structure": rank <= 0.3 * len(rank), "refinement": rank > 0.3 * len(rank)}
    supports = np.array([chosen[stage] & (rng.random(len(rank)) < 1 - k / 12) for k, stage in enumerate(STAGES)])
    picture.save(folder / "rollout.png")
    np.savez(folder / "rollout.npz", rank=rank, supports=supports, stages=np.array(STAGES), grid=grid)
    (folder / "rollout.json").write_text(json.dumps({"prompt": prompt, "reward": 1.0}))
