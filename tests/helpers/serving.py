"""An application in uvicorn in a thread, on a free port of loopback; and requests to a reward server."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from helpers.reward_scorers import image
from htgrpo_ext.pixels import encode_png
from htgrpo_ext.rewards.server import uvicorn_config

SECONDS = 30  # against hangs


@contextmanager
def listening(app) -> Iterator[str]:
    """Its url. The server stops when the block ends."""
    up = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            up.set()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn_config(app)
        config.log_level = "critical"
        server = Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.start()
        assert up.wait(30)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(30)


def body(*levels, reward="level", prompt="a", **changes) -> dict:
    files = [base64.b64encode(encode_png(image(level))).decode() for level in levels]
    return {"reward": reward, "prompts": [{"prompt": prompt}] * len(levels), "images": files} | changes


def post(url, content, **headers) -> tuple[int, dict]:
    content = json.dumps(content) if isinstance(content, dict) else content
    reply = httpx.post(f"{url}/score", content=content, headers=headers, timeout=SECONDS, trust_env=False)
    return reply.status_code, reply.json()


def until(holds) -> None:
    """Wait until `holds()`, for a bounded time."""
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < SECONDS
