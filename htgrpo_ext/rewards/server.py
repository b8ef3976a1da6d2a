"""A reward server: FastAPI in front of a `Batcher`. client.py describes the wire format.

    POST /score     {"id", "reward", "prompts", "images": [base64 PNG ..]} -> {"id", "scores": [number ..]}
    GET /health     what is served; needs the token too, so that a run finds a wrong one before it starts
    GET /metrics    Prometheus; counts only, needs no token

An error is {"detail": one line}. 400: no retry can help. 401: no token, or a wrong one. 413: too large. 408: too
slow. 500: the scorer's error or the server's, with a traceback on stderr. 503: retry later.

The server runs in a heavy reward's own environment: this file and its imports need no transformers, accelerate or peft.
"""

import asyncio
import hmac
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect
from torch import Tensor

from htgrpo_ext.errors import UserError, one_line
from htgrpo_ext.pixels import decode_png, png_size
from htgrpo_ext.rewards import TOKEN
from htgrpo_ext.rewards.batching import Batcher, Busy
from htgrpo_ext.rewards.connections import Bodies, Connection
from htgrpo_ext.rewards.scorers import check_options, device_of, scorer_class

MOST_PIXELS = 2**26  # of a request: 64 images of 1024 x 1024. A PNG can decompress to a thousand times its size
GRACE = 60  # seconds that requests under way have when the server is told to stop
KEEP_ALIVE = 60  # seconds that a connection without a request stays open
MOST_MIB = 2**14  # of --max-mib
MOST_WAIT = 60_000  # of --wait-ms: no client waits for longer
LOOPBACK = ("127.0.0.1", "localhost", "::1")

log = logging.getLogger(__name__)


class ScoreRequest(BaseModel):
    model_config = ConfigDict(val_json_bytes="base64")

    id: str | None = Field(None, max_length=100)  # returned with the scores
    reward: str
    prompts: list[dict[str, Any]]
    images: list[bytes]


class Metrics:
    """The metrics of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()
        own = {"namespace": "htgrpo_reward", "registry": self.registry}
        self.requests = Counter("requests", "Requests to /score, by the status of the reply", ["status"], **own)
        self.seconds = Histogram("request_seconds", "From a request to its reply", **own)
        sizes = [2**i for i in range(10)]
        self.batch_images = Histogram("batch_images", "Images of a batch that was scored", buckets=sizes, **own)
        self.batch_seconds = Histogram("batch_seconds", "Time to score a batch", **own)
        self.failed = Counter("failed_batches", "Batches that failed; of several requests, each was tried alone", **own)
        self.waiting = Gauge("waiting_images", "Images in the queue", **own)
        self.cut = Gauge("cut_prompts", "Prompts so far of which the model read only the start", **own)

    def on_batch(self, images: int, seconds: float, good: bool) -> None:
        if good:
            self.batch_images.observe(images)
            self.batch_seconds.observe(seconds)
        else:
            self.failed.inc()


def make_app(
    batcher: Batcher, metrics: Metrics, health: Mapping[str, Any], most_bytes: int, token: str | None
) -> FastAPI:
    """The application around a batcher. It closes the batcher when it ends.

    health      the reply to /health; requests may ask for its "rewards"
    most_bytes  of a request's body
    token       the bearer token of requests, or None
    """
    metrics.waiting.set_function(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(title="htgrpo reward server", lifespan=lifespan, openapi_url=None)

    def check_token(request: Request) -> None:
        given = request.headers.get("Authorization", "").encode("latin-1")
        if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(401, f"no token, or a wrong one ({TOKEN})")

    bodies = Bodies(most_bytes)

    async def scores(request: Request) -> dict[str, Any]:
        check_token(request)
        if batcher.waiting >= batcher.queue:  # before the body takes memory
            raise Busy("the queue is full")
        body = await bodies.read(request)
        asked, images = await asyncio.to_thread(_read, body)
        if asked.reward not in health["rewards"]:
            raise ValueError(f"unknown reward `{asked.reward}` (there is {', '.join(health['rewards'])})")
        answer = asyncio.wrap_future(batcher.submit(asked.reward, asked.prompts, images))
        gone = asyncio.ensure_future(request.receive())  # the body is read, so the next message is the disconnect
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return ({} if asked.id is None else {"id": asked.id}) | {"scores": answer.result()}
        finally:
            gone.cancel()
            answer.cancel()

    @app.post("/score")
    async def score(request: Request) -> Response:
        start = time.monotonic()
        status, headers = 200, None
        try:
            content = await scores(request)
        except Exception as error:
            status, detail = _failure(error)
            content, headers = {"detail": detail}, getattr(error, "headers", None)
        metrics.requests.labels(status).inc()
        metrics.seconds.observe(time.monotonic() - start)
        return JSONResponse(content, status, headers)

    @app.get("/health")
    async def tell_health(request: Request) -> Response:
        check_token(request)
        return JSONResponse(dict(health))

    @app.get("/metrics")
    async def tell_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _read(body: bytes) -> tuple[ScoreRequest, list[Tensor]]:
    """A request and its images. Raises ValueError; HTTPException for too many pixels."""
    try:
        asked = ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from None
    if len(asked.prompts) != len(asked.images) or not asked.images:
        raise ValueError(f"{len(asked.prompts)} prompts for {len(asked.images)} images")
    for i, prompt in enumerate(asked.prompts):
        if not isinstance(prompt.get("prompt"), str):
            raise ValueError(f"prompts.{i}: no text called `prompt`")
    images, pixels = [], 0
    for i, data in enumerate(asked.images):
        try:
            height, width = png_size(data)
            pixels += height * width
            if pixels > MOST_PIXELS:
                raise HTTPException(413, f"more than {MOST_PIXELS} pixels, at image {i} of {height} x {width}")
            images.append(decode_png(data))
        except ValueError as error:
            raise ValueError(f"images.{i}: {error}") from None
    return asked, images


def _failure(error: Exception) -> tuple[int, str]:
    """Status and error line of a request that failed."""
    if isinstance(error, HTTPException):
        return error.status_code, error.detail
    line = one_line(error)
    if isinstance(error, ClientDisconnect):
        return 499, "the client hung up"  # for the metrics; nobody reads the reply
    if isinstance(error, Busy):
        return 503, line
    if isinstance(error, ValueError):
        return 400, line
    log.error("a request failed", exc_info=error)
    return 500, line or type(error).__name__


def uvicorn_config(app: FastAPI) -> uvicorn.Config:
    """How the server runs: quiet, and with bounds on half-sent requests."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=KEEP_ALIVE,
    )


class _Server(uvicorn.Server):
    """Prints one line when it is ready. A signal is a request to stop: `run` returns, and does not raise it again."""

    ready = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.ready, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT  # a second Control-C does not wait
        self.should_exit = True


def serve(
    name: str,
    port: int,
    host: str = "127.0.0.1",
    devices: str | None = None,
    batch_size: int = 16,
    wait_ms: float = 5.0,
    max_mib: float = 64.0,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Load a reward's scorer on each device; serve it until SIGTERM or SIGINT, then return. Port 0 takes a free one.

    Raises UserError, before anything is loaded, if an argument is wrong or the port is taken.
    """
    for flag, value, most in (("--wait-ms", wait_ms, MOST_WAIT), ("--max-mib", max_mib, MOST_MIB)):
        if not 0 <= value <= most:
            raise UserError(f"{flag} {value:g}: must be a number from 0 to {most}")
    options = options or {}
    scorer = scorer_class(name)
    check_options(scorer, name, options)
    names = (devices or ("cuda:0" if torch.cuda.is_available() else "cpu")).split(",")
    found = [device_of(each.strip(), "--device") for each in names]
    token = os.environ.get(TOKEN) or None
    with _listener(host, port) as listener:
        if host not in LOOPBACK and token is None:
            print(f"warning: {host} can be reached from other machines, and {TOKEN} is not set", file=sys.stderr)
        metrics = Metrics()
        scorers = [scorer(device, **options) for device in found]
        try:
            listener.listen()
        except OSError as error:  # another server bound the port, too, and listened first
            raise _unservable(host, port, error) from None
        metrics.cut.set_function(lambda: sum(getattr(each, "cut_prompts", 0) for each in scorers))
        batcher = Batcher(scorers, batch_size, wait_ms / 1000, metrics.on_batch)
        health = {"name": name, "rewards": list(scorer.rewards), "devices": [str(device) for device in found]}
        app = make_app(batcher, metrics, health | {"batch_size": batch_size}, round(max_mib * 2**20), token)
        server = _Server(uvicorn_config(app))
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        server.ready = f"{name}: {', '.join(health['rewards'])} at {url}, on {', '.join(health['devices'])}"
        server.run([listener])
    print(f"{name}: stopped", flush=True)


def _listener(host: str, port: int) -> socket.socket:
    """A socket bound to a port, not listening yet: clients are refused until the scorers are loaded."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just released can be bound
    try:
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be encoded
        listener.close()
        raise _unservable(host, port, error) from None
    return listener


def _unservable(host: str, port: int, error: OSError | UnicodeError) -> UserError:
    said = getattr(error, "strerror", None) or error
    return UserError(f"cannot serve on {one_line(host)}:{port}: {said} (--host, --port)")
