"""One training cycle of aMUSEd at its real size on the CPU: seconds and peak memory, beside what `htgrpo plan` expects.

    .venv/bin/python benchmarks/amused_cycle.py --tuning lora --threads 2

The checkpoint has random weights in amused-256's sizes, float32, but for the words of its tokenizer. The reward is the
brightness of the pictures, because CLIP's weights may be missing; so CLIP's own time and memory are not counted. The
peak is resident memory from the first rollout on, above that of Python and the libraries before the model was loaded.
Plan's seconds are for the speed that a matrix product reaches here, measured first. The last thing
printed is the result, as JSON. Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import forget_peak, product_rate, resident

ROOT = Path(__file__).parents[1]
TEXT = dict(vocab_size=49408, max_position_embeddings=77, num_hidden_layers=12, num_attention_heads=12)
RUN = [
    "model.dtype=float32",
    "rollout.prompts_per_cycle=1",
    "rollout.rollouts_per_prompt=2",
    "rollout.steps=4",
    "loop.updates_per_rollout=2",
    "loop.micro_batches=1",
    "loop.cycles=1",
    "loop.batch_size=2",
    "method.budget={global: 1, structure: 1, refinement: 0}",
    "eval=null",
    "log.tensorboard=false",
]


class Brightness:
    rewards = ("clip",)

    def score(self, prompts, images) -> dict[str, list[float]]:
        return {"clip": [image.float().mean().item() / 255 for image in images]}


def make(folder: Path) -> None:
    """Write the checkpoint."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.amused_checkpoints import amused_checkpoint
    from htgrpo_ext.backbones.amused.checkpoint import PUBLISHED_TEXT, PUBLISHED_VQ, published_keys

    vq = {key: value for key, value in PUBLISHED_VQ.items() if not key.endswith(("types", "attention", "codebook"))}
    sizes = {key: default.default for key, default in uvit_defaults().items() if key not in ("self", "sample_size")}
    amused_checkpoint(folder, PUBLISHED_TEXT | TEXT, vq, mask_id=8255, **(sizes | published_keys(256)))


def uvit_defaults() -> dict:
    import inspect

    from diffusers.models.unets.uvit_2d import UVit2DModel

    return dict(inspect.signature(UVit2DModel.__init__).parameters)


def measure(checkpoint: Path, tuning: str, out: Path) -> dict:
    """Train one cycle; its seconds by part and bytes, and the plan's."""
    import htgrpo_ext.rewards.mix as mix
    from htgrpo_ext.config import load_settings
    from htgrpo_ext.workflow.plan import UTILISATION, Device, plan, seconds
    from htgrpo_ext.workflow.train import start

    mix.load_scorer = lambda term, device: Brightness()
    out.mkdir()
    (out / "prompts.txt").write_text("a photo of a red cat beside a green bench\n")
    sets = [*RUN, f"model.tuning={tuning}", f"model.checkpoint={checkpoint}", f"out={out / 'run'}"]
    sets.append(f"prompts=[{{format: text, path: {out / 'prompts.txt'}}}]")
    settings = load_settings([ROOT / "configs/model/amused.yaml", ROOT / "configs/method/htgrpo.yaml"], sets)
    planned, speed = plan(settings), product_rate([(1024, 1024, 1024)], seconds=2.0)
    planned_bytes = planned.memory | {"peak": planned.peak_memory()}
    before = resident("VmRSS")
    loop = start(settings, "native", False)
    assert loop.backbone is not None
    loop.backbone.prepare_decoder()
    loaded = resident("VmRSS") - before
    forget_peak()
    cpu = time.process_time()
    loop.train()
    cpu = time.process_time() - cpu
    peak = resident("VmHWM") - before
    lines = map(json.loads, (out / "run/metrics.jsonl").read_text().splitlines())
    took = next(line["seconds"] for line in lines if line["kind"] == "cycle")
    expected = seconds(planned, Device("here", 1, 0, speed / UTILISATION))
    return {
        "tuning": tuning,
        "threads": torch.get_num_threads(),
        "matmul_gflops": speed / 1e9,
        "rows": planned.rows,
        "tflop_a_row": planned.sizes.row_flops() / 1e12,
        "seconds": took,
        "cpu_seconds": cpu,  # of all threads: on a busy machine seconds say less
        "planned_seconds": expected,
        "loaded_gb": loaded / 1e9,
        "peak_gb": peak / 1e9,
        "planned_gb": {part: size / 1e9 for part, size in planned_bytes.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuning", choices=["lora", "full"], default="lora")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--checkpoint", type=Path, help="where the checkpoint is, or is made; else a temporary folder")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        make(given.make)
        return
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or Path(folder) / "checkpoint"
        if not checkpoint.exists():  # by another process, whose memory is not measured
            subprocess.run([sys.executable, __file__, "--make", str(checkpoint)], check=True)
        print(json.dumps(measure(checkpoint, given.tuning, Path(folder) / "out"), indent=1))


if __name__ == "__main__":
    main()
