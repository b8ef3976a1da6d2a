"""What dynamic batching gains: clients that ask one image at a time, batches of up to B against one by one.

    .venv/bin/python benchmarks/reward_server.py [--pairs P] [--clients C] [--requests R] [--batch-size B]

A server in this process (uvicorn on loopback, one CPU worker), C clients with httpx, each asking R times, the next
request when the answer to the last has come. The two ways take turns, and each pair gives one ratio; what is printed
are medians over the pairs, and the smallest and largest ratio. Rewards, random weights where there are any:

    encoder B x L   a transformer encoder of width B and L layers on 197 tokens, as a ViT of 224 x 224 pixels: much
                    arithmetic per weight even for one image, so that a CPU is busy without batches
    tokens B x L    the same on a single token: one image alone mostly waits for weights out of memory
    micro           the micro world's verifier: almost no work, HTTP and PNG are what costs

On a GPU an image alone leaves most of it idle; a CPU with few cores shows the lower end of what batching gains.
"""

import argparse
import asyncio
import base64
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from statistics import median

import httpx
import torch
import uvicorn
from torch import Tensor, nn

from htgrpo_ext.micro import world
from htgrpo_ext.micro.decoder import decode_codes
from htgrpo_ext.pixels import encode_png, from_levels, to_levels
from htgrpo_ext.rewards.batching import Batcher
from htgrpo_ext.rewards.scorers.micro import Scorer as MicroScorer
from htgrpo_ext.rewards.server import Metrics, make_app


class Encoder:
    """A transformer encoder with random weights on `tokens` patches of the image; its score is a mean activation."""

    rewards = ("score",)

    def __init__(self, width: int, layers: int, tokens: int):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, dropout=0.0, batch_first=True)
            self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
            self.embed = nn.Linear(3 * 8 * 8, width)
        self.tokens = tokens

    @torch.inference_mode()
    def score(self, prompts: list[dict], images: list[Tensor]) -> dict[str, list[float]]:
        pixels = from_levels(torch.stack(images))
        patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(len(images), -1, 3 * 8 * 8)
        return {"score": self.body(self.embed(patches[:, : self.tokens])).mean((1, 2)).tolist()}


@contextmanager
def served(scorer, batch_size: int, wait: float) -> Iterator[tuple[str, Metrics]]:
    """The url of a server around the scorer."""
    metrics, up = Metrics(), threading.Event()
    batcher = Batcher([scorer], batch_size, wait, metrics.on_batch)
    app = make_app(batcher, metrics, {"rewards": list(scorer.rewards)}, 2**26, token=None)

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            up.set()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        up.wait()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", metrics
        server.should_exit = True
        thread.join()


async def ask(url: str, bodies: list[bytes], clients: int, requests: int) -> float:
    """Images per second of all the clients together."""

    async def one(client: int) -> None:
        async with httpx.AsyncClient(timeout=None, trust_env=False) as http:
            for i in range(requests):
                reply = await http.post(f"{url}/score", content=bodies[(client * requests + i) % len(bodies)])
                assert reply.status_code == 200, reply.text

    start = time.perf_counter()
    await asyncio.gather(*(one(client) for client in range(clients)))
    return clients * requests / (time.perf_counter() - start)


def measure(scorer, bodies: list[bytes], batch_size: int, wait: float, options) -> tuple[float, float]:
    """Images per second, and the mean size of a batch."""
    with served(scorer, batch_size, wait) as (url, metrics):
        speed = asyncio.run(ask(url, bodies, options.clients, options.requests))
    images, batches = (metrics.registry.get_sample_value(f"htgrpo_reward_batch_images_{of}") for of in ("sum", "count"))
    return speed, images / batches


def request_bodies(reward: str) -> list[bytes]:
    """Requests for one image each, scenes of the micro world."""
    rng, prompts = Random(0), [world.all_prompts("counting")[i] for i in range(32)]
    codes_BN = torch.tensor([world.draw_scene(prompt, rng) for prompt in prompts])
    files = [base64.b64encode(encode_png(levels)).decode() for levels in to_levels(decode_codes(codes_BN))]
    return [
        json.dumps({"reward": reward, "prompts": [prompt], "images": [file]}).encode()
        for prompt, file in zip(prompts, files, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=12, help="of each client, for a measurement")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--wait-ms", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = {
        "encoder 192 x 6": Encoder(192, 6, tokens=197),
        "tokens 1024 x 4": Encoder(1024, 4, tokens=1),
        "micro": MicroScorer(torch.device("cpu")),
    }
    print(
        f"{options.clients} clients, one image a request, {options.threads} threads; medians of {options.pairs} pairs"
    )
    print(f"{'reward':18}{'one by one':>12}{'batched':>10}{'images a batch':>16}{'ratio':>8}{'range':>14}")
    for name, scorer in cases.items():
        bodies = request_bodies(scorer.rewards[0])
        measure(scorer, bodies, options.batch_size, 0.0, options)  # warm up
        rows = []
        for pair in range(options.pairs):
            ways = [(1, 0.0), (options.batch_size, options.wait_ms / 1000)]
            results = {way: measure(scorer, bodies, *way, options) for way in (ways if pair % 2 else ways[::-1])}
            (alone, _), (batched, size) = (results[way] for way in ways)
            rows.append((alone, batched, size, batched / alone))
        alone, batched, size, ratio = (median(column) for column in zip(*rows, strict=True))
        ratios = [row[3] for row in rows]
        print(
            f"{name:18}{alone:10.1f}/s{batched:8.1f}/s{size:16.1f}{ratio:8.2f}{min(ratios):8.2f}-{max(ratios):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
