"""The client of a reward server. Every request ends in bounded time, with right scores or a failure.

    POST {url}/score   {"id": TEXT, "reward": NAME, "prompts": [{"prompt": ..} ..], "images": [base64 PNG ..]}
    200                {"id": the same, "scores": [number ..]}, one score per image

Transient errors are retried: a broken connection, no reply in time, a 408, 429 or 5xx, the reply to another request.
A wait that the server asks for (Retry-After) is kept. All other errors fail at once: any other status, another number
of scores than images, a score that is not a finite number, a reply that cannot be read.
"""

import asyncio
import base64
import json
import os
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx

from htgrpo_ext.errors import one_line
from htgrpo_ext.rewards import TOKEN, fault_of, pickled, wire
from htgrpo_ext.rewards.registry import start_command
from htgrpo_ext.rewards.settings import RewardTerm

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a retry; the wait doubles each time, less up to half at random
CONNECTIONS = 16  # most connections to one server
HEALTH_TIMEOUT = 10.0  # seconds


class RewardFailure(Exception):
    """A request that failed, retries included; one line."""


class Unanswered(Exception):
    """One try of a request failed in a way that a retry may cure; one line.

    wait  seconds that the server asked to wait
    """

    def __init__(self, line: str, wait: float = 0.0):
        super().__init__(line)
        self.wait = wait


class RewardClient:
    """Sends requests to the server of one reward. Use it from one event loop; requests may overlap.

    term   a reward with a url
    sleep  waits between tries; tests replace it
    """

    def __init__(self, term: RewardTerm, retries: int, sleep: Callable[[float], Awaitable] = asyncio.sleep):
        if term.url is None:
            raise ValueError(f"reward {term.name} has no server")
        self.term, self.url, self.retries, self.sleep = term, term.url, retries, sleep
        self.pickles = term.protocol == "reward-server-pickle"
        self._http = wire.http_client(os.environ.get(TOKEN), CONNECTIONS)

    def failure(self, what: str) -> RewardFailure:
        return RewardFailure(f"reward {self.term.name}: {what} ({self.url})")

    async def score(self, prompts: Sequence[dict], images: Sequence[bytes], latest: float | None = None) -> list[float]:
        """One score per PNG, in bounded time. Raises RewardFailure.

        latest  on time.monotonic's clock; when a server asks to wait longer, the request fails at once
        """
        request_id = uuid.uuid4().hex
        body, content_type = self._request(request_id, prompts, images)
        last, wait = "", 0.0  # of the last try: why it failed, seconds that the server asked to wait
        for attempt in range(self.retries + 1):
            if attempt:
                backoff = min(FIRST_WAIT * 2 ** min(attempt - 1, 10), LONGEST_WAIT)
                await self.sleep(max(wait, backoff * (0.5 + 0.5 * random.SystemRandom().random())))
            try:
                async with asyncio.timeout(self.term.timeout):
                    reply = await self._post(body, content_type)
                return self._scores(reply, request_id, len(images))
            except TimeoutError:
                last, wait = f"no answer within {self.term.timeout:g} s", 0.0
            except httpx.TransportError as error:
                last, wait = f"{type(error).__name__}: {one_line(error)}".removesuffix(": "), 0.0
            except Unanswered as error:
                last, wait = str(error), error.wait
            if wait and latest is not None and time.monotonic() + wait > latest:
                raise self.failure(f"{last}; the server asks to wait {wait:g} s, which is past the deadline")
        raise self.failure(f"{last}, in {self.retries + 1} tries")

    def _request(self, request_id: str, prompts: Sequence[dict], images: Sequence[bytes]) -> tuple[bytes, str]:
        if self.pickles:
            return pickled.request(prompts, images), "application/octet-stream"
        encoded = [base64.b64encode(image).decode() for image in images]
        body = {"id": request_id, "reward": self.term.name, "prompts": list(prompts), "images": encoded}
        return json.dumps(body).encode(), "application/json"

    async def _post(self, body: bytes, content_type: str) -> bytes:
        url = self.url if self.pickles else f"{self.url.rstrip('/')}/score"
        try:
            status, reply, headers = await wire.request(self._http, "POST", url, body, content_type)
        except wire.BadReply as error:
            raise self.failure(str(error)) from None
        if status >= 500 or status in wire.TRANSIENT:
            raise Unanswered(f"status {status}{_detail(reply)}", wire.retry_after(headers))
        if status != 200:
            raise self.failure(f"status {status}{_detail(reply)}")
        return reply

    def _scores(self, reply: bytes, request_id: str, count: int) -> list[float]:
        try:
            content: Any = (pickled.loads if self.pickles else json.loads)(reply)
            scores = content["scores"]
            echo = request_id if self.pickles else content.get("id")  # a pickle server knows no ids
        except (pickled.Refused, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.failure(f"a reply that cannot be read: {one_line(repr(error))}") from None
        if echo is None:
            raise self.failure("a reply without the request's `id`")
        if echo != request_id:
            raise Unanswered("the reply to another request (its `id` differs)")
        if not isinstance(scores, list) or len(scores) != count:
            got = len(scores) if isinstance(scores, list) else f"a {type(scores).__name__}"
            raise self.failure(f"{got} scores for {count} images")
        for i, score in enumerate(scores):
            if fault := fault_of(score):
                raise self.failure(f"score {i} {fault}")
        return [float(score) for score in scores]

    async def health(self) -> str | None:
        """Why the server cannot serve this reward, in one line; None if it can."""
        fault = await self._health()
        return f"reward {self.term.name}: {fault}" if fault else None

    async def _health(self) -> str | None:
        try:
            async with asyncio.timeout(min(self.term.timeout, HEALTH_TIMEOUT)):
                if self.pickles:  # such a server has nothing to ask but for scores
                    url = httpx.URL(self.url)
                    tls = url.scheme == "https"
                    _, writer = await asyncio.open_connection(url.host, url.port or (443 if tls else 80), ssl=tls)
                    writer.close()
                    return None
                status, reply, _ = await wire.request(self._http, "GET", f"{self.url.rstrip('/')}/health")
        except (TimeoutError, OSError, httpx.TransportError) as error:
            if tls_fault := wire.tls_fault(error):
                return f"TLS to {self.url} failed: {tls_fault} (check the certificate, and http or https)"
            if isinstance(error, httpx.RemoteProtocolError):
                return f"what answers at {self.url} does not speak HTTP ({one_line(error)})"
            start = "" if self.pickles else start_command(self.term.name, httpx.URL(self.url).port)
            return f"no server answers at {self.url}{start and f'; start it with: {start}'}"
        except wire.BadReply as error:
            return f"{error} ({self.url})"
        if status == 401:
            return f"the server at {self.url} wants another token ({TOKEN})"
        try:
            served = json.loads(reply)["rewards"] if status == 200 else None
        except (ValueError, KeyError, TypeError, RecursionError):
            served = None
        if not isinstance(served, list) or not all(isinstance(name, str) for name in served):
            return f"what answers at {self.url} does not speak this protocol"
        if self.term.name not in served:
            return f"the server at {self.url} has {one_line(', '.join(served))}"
        return None


def _detail(reply: bytes) -> str:
    """The start of what a server says about an error."""
    try:
        said = json.loads(reply)["detail"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = reply.decode(errors="replace")
    line = one_line(" ".join(str(said).split()))
    return f": {line}" if line else ""
