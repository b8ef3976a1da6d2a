"""One cycle of an 8B model on the CPU, without its weights: does it fit, and does `htgrpo plan` say how much it takes?

    real_size.py --folder DIR [--width 4096 --layers 32]

It writes a random MMaDA of that shape to DIR in bfloat16, in shards, as the published checkpoint is. DIR needs twice
the model's size on disk (32 GB), and is removed at the end. A process of its own then loads the model and trains one
cycle of HT-GRPO with adapters: one prompt, 2 rollouts, 2 denoising steps, 2 updates, the real sequence and
vocabulary. Another one merges the adapter into the checkpoint. A thread reads every 10 ms how much memory the process
holds (Linux only: /proc; pages of mapped files are not counted). The decoder and the reward are stand-ins.

Figures go to benchmarks/real-size-WIDTHxLAYERS.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/ has the tokenizer, and stands in for decoder and reward

# glibc keeps freed blocks below 32 MB, and an update frees many: without this the process holds what nobody uses.
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
HEAD_WIDTH, VOCABULARY, BLOCKS_PER_SHARD = 128, 134_656, 4
PROMPT = "a photo of the red cat beside two dog"
INTERVAL = 0.01  # seconds between two readings
GB = 1e9


def held_memory() -> int:
    """Bytes that this process holds of its own: mapped files can be dropped, and are not counted."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Watch:
    """Most memory held, and seconds, in each part of a process."""

    def __init__(self):
        self.peaks: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self._part, self._since = "start", time.perf_counter()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            part = self._part
            self.peaks[part] = max(self.peaks.get(part, 0), held_memory())
            time.sleep(INTERVAL)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens inside counts for `name`, and not for the part around it."""
        before = self._part
        self._enter(name)
        yield
        self.peaks[name] = max(self.peaks.get(name, 0), held_memory())
        self._enter(before)

    def _enter(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[self._part] = self.seconds.get(self._part, 0.0) + now - self._since
        self._part, self._since = name, now

    def around(self, owner, name: str, part: str) -> None:
        """Count a function of a module for `part`."""
        function = getattr(owner, name)

        def watched(*arguments, **keywords):
            with self.part(part):
                return function(*arguments, **keywords)

        setattr(owner, name, watched)


def shapes(width: int, layers: int) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Name and tensors of each shard of the checkpoint, by their published names."""
    block: dict[str, tuple[int, ...]] = {name: (width, width) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
    block |= {"ff_proj": (3 * width, width), "up_proj": (3 * width, width), "ff_out": (width, 3 * width)}
    block |= {"attn_norm": (width,), "ff_norm": (width,)}
    shards: list[dict[str, tuple[int, ...]]] = [{"wte": (VOCABULARY, width)}]
    for first in range(0, layers, BLOCKS_PER_SHARD):
        group = range(first, min(first + BLOCKS_PER_SHARD, layers))
        shards.append({f"blocks.{i}.{name}": shape for i in group for name, shape in block.items()})
    shards.append({"ln_f": (width,), "ff_out": (VOCABULARY, width)})
    for i, shard in enumerate(shards, 1):
        tensors = {f"model.transformer.{name}.weight": shape for name, shape in shard.items()}
        yield f"model-{i:05d}-of-{len(shards):05d}.safetensors", tensors


def write_checkpoint(folder: Path, width: int, layers: int) -> int:
    """Random weights in bfloat16, one shard in memory at a time. Returns their number."""
    import torch
    from safetensors.torch import save_file

    from helpers.llada_checkpoints import MMADA_ROWS, special_tokens, write_config, write_tokenizer

    assert MMADA_ROWS == VOCABULARY
    folder.mkdir(parents=True)
    rows = {"vocab_size": VOCABULARY, "embedding_size": VOCABULARY, "new_vocab_size": VOCABULARY}
    sizes = {"d_model": width, "n_layers": layers, "mlp_hidden_size": 3 * width}
    heads = {"n_heads": width // HEAD_WIDTH, "n_kv_heads": width // HEAD_WIDTH}
    write_config(folder, **rows, **sizes, **heads, model_type="mmada", codebook_size=8192)
    write_tokenizer(folder, special_tokens())
    generator, places, count = torch.Generator().manual_seed(0), {}, 0
    for file, tensors in shapes(width, layers):
        weights = {}
        for name, shape in tensors.items():
            weight = torch.empty(shape, dtype=torch.bfloat16)
            is_norm = len(shape) == 1
            weights[name] = weight.fill_(1.0) if is_norm else weight.normal_(0, shape[1] ** -0.5, generator=generator)
            places[name], count = file, count + weight.numel()
        save_file(weights, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return count


def settings_of(checkpoint: Path, rank: int):
    """Settings of one cycle: what MODEL=mmada METHOD=htgrpo has, but one prompt and few images, steps and updates."""
    from htgrpo_ext.config import load_settings

    prompts = checkpoint / "prompts.txt"
    prompts.write_text(PROMPT + "\n")
    changes = [
        f"model.checkpoint={checkpoint}",
        f"model.vq_checkpoint={checkpoint}",  # a stand-in, too
        f"model.lora.rank={rank}",
        f"out={checkpoint.parent / 'run'}",
        "rollout.prompts_per_cycle=1",
        "rollout.rollouts_per_prompt=2",
        "rollout.steps=2",
        "loop.micro_batches=1",
        "loop.updates_per_rollout=2",
        "loop.cycles=1",
        "loop.warmup_updates=0",
        "loop.learning_rate=1.0e-3",  # so that two updates change every weight in bfloat16
        "method.budget={global: 1, structure: 1, refinement: 0}",
        f"prompts=[{{format: text, path: {prompts}}}]",
        "reward.terms=[{name: clip, weight: 1.0}]",
        "eval=null",
        "log.tensorboard=false",
    ]
    return load_settings([ROOT / "configs/model/mmada.yaml", ROOT / "configs/method/htgrpo.yaml"], changes)


def train_one_cycle(checkpoint: Path, rank: int) -> dict:
    """Load, roll out, score, update, save: memory and seconds of each part, and the plan's figures."""
    from helpers.upstream_stub import Brightness, StubDecoder
    from htgrpo_ext.backbones.mmada import backbone
    from htgrpo_ext.rewards import mix
    from htgrpo_ext.train import native
    from htgrpo_ext.workflow.plan import plan

    mix.load_scorer = lambda term, device: Brightness()
    backbone.load_magvit = lambda folder: StubDecoder()
    settings = settings_of(checkpoint, rank)
    planned = plan(settings)
    watch = Watch()
    for name, part in (("roll_out", "rollout"), ("score_micro_batches", "score")):
        watch.around(native, name, part)
    time.sleep(0.1)
    empty = held_memory()
    with watch.part("load"):
        loop = native.start(settings)
    loaded = held_memory()
    with loop.run.progress, watch.part("update"):  # what is not rollout or score
        native.train_cycle(loop, 0)
    with watch.part("save"):
        loop.save()
        loop.save_model(settings.folder / "model")
    updates = [json.loads(line) for line in loop.run.log.path.read_text().splitlines()]
    return {
        "libraries": empty,
        "loaded": loaded - empty,
        "peaks": {part: peak - empty for part, peak in watch.peaks.items() if part != "start"},
        "seconds": watch.seconds,
        "rows": dict(loop.forward.rows),
        "losses": [update["loss"] for update in updates if update["kind"] == "update"],
        "planned": planned.memory | {"peak": planned.peak_memory()},
    }


def merge_adapter(checkpoint: Path) -> dict:
    """Fold the adapter into a copy of the checkpoint: memory, seconds, and the number of changed weights."""
    from htgrpo_ext.backbones.adapters import merge

    watch, run = Watch(), checkpoint.parent / "run"
    time.sleep(0.1)
    empty = held_memory()
    with watch.part("merge"):
        changed = merge(checkpoint, run / "model", checkpoint.parent / "merged")
    return {"peak": watch.peaks["merge"] - empty, "seconds": watch.seconds["merge"], "changed": changed}


def in_process(stage: str, folder: Path, rank: int, threads: int) -> dict:
    """A stage in a process of its own; its figures."""
    environment = RETURN_FREED | os.environ | {"OMP_NUM_THREADS": str(threads), "HTGRPO_STAGE": stage}
    command = [sys.executable, __file__, "--folder", str(folder), "--rank", str(rank)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(figures: dict) -> None:
    train, merged, planned = figures["train"], figures["merge"], figures["train"]["planned"]
    weights = 2 * figures["parameters"]
    print(f"{figures['parameters'] / 1e9:.3f} billion weights, {weights / GB:.2f} GB; {figures['machine']}")
    print(
        f"load     {train['peaks']['load'] / weights:.2f} times the weights at most, {train['seconds']['load']:.0f} s"
    )
    for part in ("rollout", "score", "update", "save"):
        print(f"{part:8} {train['peaks'][part] / GB:7.2f} GB at most, {train['seconds'][part]:.0f} s")
    for part, size in planned.items():
        print(f"plan     {size / GB:7.2f} GB {part}")
    print(f"peak     {figures['peak'] / GB:.2f} GB, {figures['peak'] / planned['peak']:.2f} times the plan's")
    print(
        f"merge    {merged['peak'] / GB:.2f} GB at most, {merged['seconds']:.0f} s, {merged['changed']} weights changed"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="a new folder, removed at the end")
    parser.add_argument("--width", type=int, default=4096, help=f"a multiple of {HEAD_WIDTH}")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16, help="of the adapters; the published 128 takes 5 GB more")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    checkpoint = given.folder / "checkpoint"
    if stage := os.environ.get("HTGRPO_STAGE"):
        done = train_one_cycle(checkpoint, given.rank) if stage == "train" else merge_adapter(checkpoint)
        print(json.dumps(done))
        return
    import torch

    given.folder.mkdir(parents=True)
    try:
        start = time.perf_counter()
        count = write_checkpoint(checkpoint, given.width, given.layers)
        print(f"{checkpoint}: written in {time.perf_counter() - start:.0f} s", flush=True)
        train = in_process("train", given.folder, given.rank, given.threads)
        merged = in_process("merge", given.folder, given.rank, given.threads)
    finally:
        shutil.rmtree(given.folder)
    figures = {
        "date": date.today().isoformat(),
        "machine": f"{given.threads} CPU cores, torch {torch.__version__}",
        "mmap_threshold": (RETURN_FREED | os.environ)["MALLOC_MMAP_THRESHOLD_"],
        "shape": {"width": given.width, "layers": given.layers, "rank": given.rank},
        "parameters": count,
        "peak": max(train["peaks"].values()),
        "train": train,
        "merge": merged,
    }
    out = ROOT / "benchmarks" / f"real-size-{given.width}x{given.layers}.json"
    out.write_text(json.dumps(figures, indent=1) + "\n")
    show(figures)
    print(out)


if __name__ == "__main__":
    main()
