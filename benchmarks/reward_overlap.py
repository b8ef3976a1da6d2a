"""What `reward.overlap` gains: cycles with a slow reward server, overlapped and not, in pairs.

    .venv/bin/python benchmarks/reward_overlap.py --method htgrpo --milliseconds 10

The server sleeps, so it uses no CPU, like one on another GPU. Both runs of a pair have the same seed; which goes first
alternates. The first cycle of each run warms up and is left out. Waiting is the part of a cycle that the log calls
`reward`: decoding and sending the pictures, and waiting for the rest of the reply.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import torch

from htgrpo_ext.config import load_settings
from htgrpo_ext.workflow.train import train

CONFIGS = Path(__file__).parents[1] / "configs"
CYCLES = 4


class Slow:
    """A slow reward model: mean brightness, after a sleep for each image."""

    rewards = ("slow",)

    def __init__(self, device: torch.device, milliseconds: float):
        self.milliseconds = milliseconds

    def score(self, prompts, images) -> dict[str, list[float]]:
        time.sleep(self.milliseconds / 1000 * len(images))
        return {"slow": [image.float().mean().item() for image in images]}


def seconds_of_a_cycle(method: str, url: str, overlap: bool, out: Path) -> tuple[float, float]:
    """Medians over cycles: of the whole cycle, and of its waiting."""
    term = f"{{name: slow, weight: 1.0, url: '{url}', batch_size: 1000}}"
    sets = [f"reward.terms=[{term}]", f"reward.overlap={str(overlap).lower()}", f"loop.cycles={CYCLES}", f"out={out}"]
    sets += ["eval.prompts_per_task=1", "eval.images_per_prompt=1", "log.tensorboard=false"]
    train(load_settings([CONFIGS / "model/micro.yaml", CONFIGS / f"method/{method}.yaml"], sets))
    records = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    cycles = [r["seconds"] for r in records if r["kind"] == "cycle"][1:]
    return statistics.median(sum(c.values()) for c in cycles), statistics.median(c["reward"] for c in cycles)


def wait_for(url: str, server: subprocess.Popen) -> None:
    while server.poll() is None:
        try:
            httpx.get(f"{url}/health", trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    sys.exit("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", default="htgrpo")
    parser.add_argument("--milliseconds", type=float, default=10.0, help="per image, of the server")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "htgrpo_ext.cli", "serve-reward", f"{__file__}:Slow", "--port", str(port)]
    server = subprocess.Popen([*command, "--batch-size", "1000", "--set", f"milliseconds={arguments.milliseconds}"])
    try:
        wait_for(url, server)
        pairs = []
        with tempfile.TemporaryDirectory() as folder:
            for i in range(arguments.pairs):
                pair = {}
                for overlap in (True, False) if i % 2 else (False, True):
                    pair[overlap] = seconds_of_a_cycle(arguments.method, url, overlap, Path(folder, f"{i}-{overlap}"))
                pairs.append(pair)
                (whole, waited), (whole_overlapped, waited_overlapped) = pair[False], pair[True]
                print(
                    f"pair {i + 1}: {whole:.2f} s a cycle, {waited:.2f} of it waiting; "
                    f"overlapped {whole_overlapped:.2f} s, {waited_overlapped:.2f} of it waiting"
                )
    finally:
        server.terminate()
        server.wait()
    gain = statistics.median(pair[False][0] / pair[True][0] for pair in pairs)
    saved = statistics.median(pair[False][1] - pair[True][1] for pair in pairs)
    print(
        f"{arguments.method}, {arguments.milliseconds:g} ms an image, medians of {len(pairs)} pairs: overlapped "
        f"cycles are {gain:.2f} times as fast, and wait {saved:.2f} s less"
    )


if __name__ == "__main__":
    main()
