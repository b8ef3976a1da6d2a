"""Measure rollouts on a CPU thread against those of an older commit: seconds, and memory over the loaded model.

    git worktree add /path/to/old a8b40c3
    rollout_speed.py --old /path/to/old [--pairs 3] [--case micro] [--case mmada] [--case train] [--profile]
                     [--out FILE.json]

micro  four times a micro-batch of the default run: 6 prompts, 9 images each, 8 steps, no guidance
mmada  a random MMaDA of width 64 and 4 layers, with the real sequence (1,024 image tokens) and vocabulary (134,656,
       of which 8,192 are codes): 2 prompts, 4 images each, 12 steps, guidance 3.5, 8 rows per forward
train  a fifth of the default run: 8 cycles, evaluation of 8 prompts a task before and after

Each measurement is a process of its own, with one thread; old and new take turns. Seconds are CPU seconds, which other
work on the machine changes little. The images of old and new must be the same, or it stops. Linux only (/proc).
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

from measuring import MIB, Peak, last_line
from shapes import tiny_checkpoint

ROOT = Path(__file__).parents[1]
CASES = ("micro", "mmada", "train")
BATCHES = {"micro": 4, "mmada": 1}


def model_of(case: str, tree: Path, folder: Path, images: int, prompts: int):
    """The backbone, its prompts (a row for each image), G and the settings."""
    from htgrpo_ext.backbones import load_backbone
    from htgrpo_ext.config import load_settings

    changes = []
    texts = ["a red circle", "two blue squares", "a green star left of a red heart"] * 2
    if case == "mmada":
        checkpoint = tiny_checkpoint("mmada", folder / "mmada", 64, 4)
        changes, images = [f"model.checkpoint={checkpoint}", "model.dtype=float32"], images or 4
        texts = ["a photo of a red cat", "two dog beside the round green bench"]
    files = [tree / "configs/model" / f"{case}.yaml", tree / "configs/method/htgrpo.yaml"]
    settings = load_settings(files, changes)
    backbone = load_backbone(settings.model, "cpu", settings.seed, frozen=True)
    backbone.model.eval()
    G = images or settings.rollout.rollouts_per_prompt
    return backbone, backbone.encode_prompts(texts[: prompts or None]).repeat(G), G, settings


def rolled_out(case: str, tree: Path, folder: Path, images: int, prompts: int, profiled: bool) -> dict:
    """Load, warm up with one rollout batch, measure as many as the case has."""
    import torch
    from torch.profiler import profile

    from htgrpo_ext.core.estimator import SharedForward
    from htgrpo_ext.core.randomness import Draws
    from htgrpo_ext.rollouts.generate import generate

    backbone, rows, G, settings = model_of(case, tree, folder, images, prompts)

    def roll_out(steps: int):
        forward = SharedForward(backbone.image_logits, backbone.mask_id, settings.loop.batch_size)
        draws = Draws(0, steps, range(len(rows.ids_BL) // G), G)
        with torch.no_grad():
            rollout = generate(backbone, forward, rows, draws, settings.rollout.model_copy(update={"steps": steps}))
        return rollout, forward.rows["rollout"]

    roll_out(settings.rollout.steps)
    peak = Peak()
    start, wall = time.process_time(), time.perf_counter()
    rollout, count = [roll_out(settings.rollout.steps) for _ in range(BATCHES[case])][-1]
    found = {"seconds": time.process_time() - start, "wall": time.perf_counter() - wall, "rows": count}
    found |= {"peak": peak.over() / MIB, "entropy": rollout.entropy_BN.mean().item()}
    found["images"] = digest(rollout.codes_BN, rollout.unmask_step_BN)
    if profiled:
        with profile() as measured:
            roll_out(settings.rollout.steps)
        events = measured.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        events = sorted(events, key=lambda event: -event.self_cpu_time_total)[:10]
        found["profile"] = {event.key: round(event.self_cpu_time_total / total, 3) for event in events}
    return found


def trained(tree: Path, folder: Path) -> dict:
    """The whole of `htgrpo train` but for the interpreter's start."""
    from htgrpo_ext.config import load_settings
    from htgrpo_ext.workflow.train import train

    files = [tree / "configs/model/micro.yaml", tree / "configs/method/htgrpo.yaml"]
    changes = ["loop.cycles=8", "eval.prompts_per_task=8", f"out={folder / 'run'}", "log.tensorboard=false"]
    start, wall = time.process_time(), time.perf_counter()
    run = train(load_settings(files, changes))
    found = {"seconds": time.process_time() - start, "wall": time.perf_counter() - wall}
    (weights,) = (run / "model").glob("*.safetensors")
    return found | {"images": hashlib.sha256(weights.read_bytes()).hexdigest()}  # the same images, the same weights


def digest(*tensors) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def in_process(tree: Path, case: str, images: int = 0, profiled: bool = False, prompts: int = 0) -> dict:
    """A measurement in a process of its own, with the package of a source tree. 0: the case's own number."""
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'tests'}"}
    command = [sys.executable, __file__, "--child", case, "--old", tree]
    command += ["--images", str(images), "--prompts", str(prompts), *["--profile"] * profiled]
    return last_line(command, environment, tree)


def compared(case: str, old: Path, pairs: int, images: int, profiled: bool) -> dict:
    """Pairs of measurements, and the medians of their ratios, old / new."""
    runs: dict[str, list[dict]] = {"old": [], "new": []}
    for pair in range(pairs):
        for name, tree in (("old", old), ("new", ROOT)):
            runs[name].append(in_process(tree, case, images, profiled and pair == 0 and case != "train"))
            print(f"{case} {name}: {runs[name][-1]['seconds']:.1f} CPU s", file=sys.stderr, flush=True)
    if len({each["images"] for side in runs.values() for each in side}) != 1:
        raise RuntimeError(f"{case}: old and new did not give the same images")
    ratios = {
        key: median(a[key] / b[key] for a, b in zip(runs["old"], runs["new"], strict=True))
        for key in ("seconds", "wall", "peak")
        if key in runs["new"][0]
    }
    return {"ratio": ratios, **runs}


def main() -> None:
    parser = argparse.ArgumentParser(description="Rollouts of this commit beside those of an older one")
    parser.add_argument("--old", type=Path, required=True, help="source tree of the older commit")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--case", action="append", choices=CASES, help="default: all")
    parser.add_argument("--images", type=int, default=0, help="images per prompt, if not the case's own")
    parser.add_argument("--prompts", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="JSON file for all numbers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="also profile the first pair's rollouts")
    options = parser.parse_args()
    if options.child:
        with tempfile.TemporaryDirectory() as folder:
            tree, folder = options.old, Path(folder)
            given = (options.child, tree, folder, options.images, options.prompts, options.profile)
            print(json.dumps(trained(tree, folder) if options.child == "train" else rolled_out(*given)))
        return
    found: dict = {"date": date.today().isoformat(), "threads": 1}
    for case in options.case or CASES:
        found[case] = compared(case, options.old.resolve(), options.pairs, options.images, options.profile)
        print(case, {key: round(ratio, 2) for key, ratio in found[case]["ratio"].items()})
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
