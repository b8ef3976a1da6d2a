"""What dynamic batching gains: clients that send one image at a time, scored in batches of up to B or one by one.

    .venv/bin/python benchmarks/reward_server.py [--pairs P] [--clients C] [--requests R] [--batch-size B]

Each reward has two servers, both `htgrpo serve-reward` on the CPU, one with --batch-size 1. C clients in this process
send R requests each to one of them, the next when the reply to the last has come; then to the other. The two take turns
in being first, and each pair gives one ratio. Printed are medians over the pairs, and the smallest and the largest
ratio. The rewards, with random weights where they have any:

    encoder   width 192, 6 layers, 197 tokens, as a small ViT: one image keeps a CPU busy
    one token width 1024, 4 layers, one token: one image mostly waits for weights from memory
    micro     the micro world's verifier: almost no work; HTTP and PNG take the time

One image leaves most of a GPU idle; a few CPU cores show the lower end of the gain.
"""

import argparse
import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from random import Random
from statistics import median

import httpx
import torch
from torch import Tensor, nn

from htgrpo_ext.micro import world
from htgrpo_ext.micro.decoder import decode_codes
from htgrpo_ext.pixels import encode_png, from_levels, to_levels

CASES = {  # argument of serve-reward, its options, the reward's name
    "encoder": (f"{__file__}:Encoder", {"width": 192, "layers": 6, "tokens": 197}, "score"),
    "one token": (f"{__file__}:Encoder", {"width": 1024, "layers": 4, "tokens": 1}, "score"),
    "micro": ("micro", {}, "partial"),
}
SAMPLES = ("htgrpo_reward_batch_images_sum", "htgrpo_reward_batch_images_count")


class Encoder:
    """A transformer encoder with random weights on patches of 8 x 8 pixels; the score is the mean activation."""

    rewards = ("score",)

    def __init__(self, device: torch.device, width: int, layers: int, tokens: int):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
        self.embed, self.tokens = nn.Linear(3 * 8 * 8, width), tokens

    @torch.inference_mode()
    def score(self, prompts: list[dict], images: list[Tensor]) -> dict[str, list[float]]:
        pixels = from_levels(torch.stack(images))
        patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(len(images), -1, 3 * 8 * 8)
        return {"score": self.body(self.embed(patches[:, : self.tokens])).mean((1, 2)).tolist()}


@contextmanager
def served(case: str, batch_size: int, options: argparse.Namespace) -> Iterator[str]:
    """Start a server process; gives its URL."""
    reward, own, _ = CASES[case]
    command = [sys.executable, "-m", "htgrpo_ext.cli", "serve-reward", reward, "--port", "0", "--device", "cpu"]
    command += ["--batch-size", str(batch_size), "--wait-ms", str(options.wait_ms)]
    command += [part for key, value in own.items() for part in ("--set", f"{key}={value}")]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().rpartition(" at ")[2].rpartition(", on ")[0]
        process.terminate()


async def ask(url: str, bodies: list[bytes], clients: int, requests: int) -> float:
    """Images per second of all clients together."""

    async def one(http: httpx.AsyncClient, client: int) -> None:
        for i in range(requests):
            reply = await http.post(f"{url}/score", content=bodies[(client * requests + i) % len(bodies)])
            assert reply.status_code == 200, reply.text

    async with AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(httpx.AsyncClient(timeout=None, trust_env=False)) for _ in range(clients)
        ]
        start = time.perf_counter()
        await asyncio.gather(*(one(http, client) for client, http in enumerate(pools)))
        return clients * requests / (time.perf_counter() - start)


def scored(url: str) -> tuple[float, float]:
    """Images and batches that a server has scored so far."""
    lines = dict(line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics", trust_env=False).text.splitlines())
    images, batches = (float(lines[sample]) for sample in SAMPLES)
    return images, batches


def request_bodies(reward: str) -> list[bytes]:
    """Requests for one image each, scenes of the micro world."""
    rng, prompts = Random(0), [world.all_prompts("counting")[i] for i in range(32)]
    codes_BN = torch.tensor([world.draw_scene(prompt, rng) for prompt in prompts])
    files = [base64.b64encode(encode_png(levels)).decode() for levels in to_levels(decode_codes(codes_BN))]
    return [
        json.dumps({"reward": reward, "prompts": [prompt], "images": [file]}).encode()
        for prompt, file in zip(prompts, files, strict=True)
    ]


def measure(case: str, options: argparse.Namespace) -> str:
    """A row of the table."""
    bodies = request_bodies(CASES[case][2])
    rows, sizes = [], []
    with ExitStack() as stack:
        alone, batched = (stack.enter_context(served(case, size, options)) for size in (1, options.batch_size))
        for pair in range(-1, options.pairs):  # the first warms up
            before, speed = scored(batched), {}
            for url in (alone, batched) if pair % 2 else (batched, alone):
                speed[url] = asyncio.run(ask(url, bodies, options.clients, options.requests))
            if pair >= 0:
                images, batches = (now - then for now, then in zip(scored(batched), before, strict=True))
                sizes.append(images / batches)
                rows.append((speed[alone], speed[batched], speed[batched] / speed[alone]))
    of_alone, of_batched, ratios = zip(*rows, strict=True)
    ranged = f"{min(ratios):.2f}-{max(ratios):.2f}"
    row = f"{case:12}{median(of_alone):12.1f}{median(of_batched):12.1f}{median(sizes):16.1f}{median(ratios):8.2f}"
    return f"{row}{ranged:>14}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=8, help="of each client, for a measurement")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--wait-ms", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server's torch")
    options = parser.parse_args()
    print(f"{options.clients} clients, one image a request; images a second, medians of {options.pairs} pairs")
    print(f"{'reward':12}{'one by one':>12}{'batched':>12}{'images a batch':>16}{'ratio':>8}{'range':>14}")
    for case in CASES:
        print(measure(case, options), flush=True)


if __name__ == "__main__":
    main()
