"""The client of a reward server. Every request ends in bounded time, with right scores or a failure.

    POST {url}/score   {"reward": NAME, "prompts": [{"prompt": ..} ..], "images": [base64 PNG ..]}
    200                {"scores": [number ..]}, one per image

Transient errors are retried: a broken connection, no reply in time, a 5xx. All others fail at once: a 4xx, another
number of scores than images, a score that is not a finite number, a reply that cannot be read.
"""

import asyncio
import base64
import json
import math
import os
import random
from collections.abc import Awaitable, Callable, Sequence

import httpx

from htgrpo_ext.rewards import TOKEN, pickled
from htgrpo_ext.rewards.settings import RewardTerm

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a retry; the wait doubles each time, less up to half at random
LARGEST_REPLY = 2**24  # bytes
CONNECTIONS = 16  # most connections to one server


class RewardFailure(Exception):
    """A request that failed, retries included; one line."""


class Unanswered(Exception):
    """One try of a request failed in a way that a retry may cure; one line."""


class RewardClient:
    """Sends requests to the server of one reward. Use it from one event loop; requests may overlap.

    term   a reward with a url
    sleep  waits between tries; tests replace it
    """

    def __init__(self, term: RewardTerm, retries: int, sleep: Callable[[float], Awaitable] = asyncio.sleep):
        if term.url is None:
            raise ValueError(f"reward {term.name} has no server")
        self.term, self.url, self.retries, self.sleep = term, term.url, retries, sleep
        token = os.environ.get(TOKEN)
        self._http = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=CONNECTIONS),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=None,  # a try as a whole has a timeout, below
            trust_env=False,  # no proxy: the server may be on this host
        )

    def failure(self, what: str) -> RewardFailure:
        return RewardFailure(f"reward {self.term.name}: {what} ({self.url})")

    async def score(self, prompts: Sequence[dict], images: Sequence[bytes]) -> list[float]:
        """One score per PNG, in bounded time. Raises RewardFailure."""
        body, content_type = self._request(prompts, images)
        last = ""  # why the last try failed
        for attempt in range(self.retries + 1):
            if attempt:
                wait = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT)
                await self.sleep(wait * (0.5 + 0.5 * random.SystemRandom().random()))
            try:
                async with asyncio.timeout(self.term.timeout):
                    reply = await self._post(body, content_type)
                return self._scores(reply, len(images))
            except TimeoutError:
                last = f"no answer within {self.term.timeout:g} s"
            except httpx.TransportError as error:
                last = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            except Unanswered as error:
                last = str(error)
        raise self.failure(f"{last}, in {self.retries + 1} tries")

    def _request(self, prompts: Sequence[dict], images: Sequence[bytes]) -> tuple[bytes, str]:
        if self.term.protocol == "reward-server-pickle":
            return pickled.request(prompts, images), "application/octet-stream"
        encoded = [base64.b64encode(image).decode() for image in images]
        body = {"reward": self.term.name, "prompts": list(prompts), "images": encoded}
        return json.dumps(body).encode(), "application/json"

    async def _post(self, body: bytes, content_type: str) -> bytes:
        pickles = self.term.protocol == "reward-server-pickle"
        url = self.url if pickles else f"{self.url.rstrip('/')}/score"
        async with self._http.stream("POST", url, content=body, headers={"Content-Type": content_type}) as response:
            reply = b""
            async for part in response.aiter_bytes():
                reply += part
                if len(reply) > LARGEST_REPLY:
                    raise self.failure(f"a reply of more than {LARGEST_REPLY} bytes")
        status = response.status_code
        if status >= 500:
            raise Unanswered(f"status {status}{_detail(reply)}")
        if status != 200:
            raise self.failure(f"status {status}{_detail(reply)}")
        return reply

    def _scores(self, reply: bytes, count: int) -> list[float]:
        try:
            read = pickled.loads if self.term.protocol == "reward-server-pickle" else json.loads
            scores = read(reply)["scores"]
        except (pickled.Refused, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.failure(f"a reply that cannot be read: {error!r}") from None
        if not isinstance(scores, list) or len(scores) != count:
            got = len(scores) if isinstance(scores, list) else f"a {type(scores).__name__}"
            raise self.failure(f"{got} scores for {count} images")
        for i, score in enumerate(scores):
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise self.failure(f"score {i} is {score!r}, no finite number")
        return [float(score) for score in scores]

    async def health(self) -> str | None:
        """Why the server cannot serve this reward, in one line; None if it can."""
        try:
            async with asyncio.timeout(min(self.term.timeout, 10.0)):
                if self.term.protocol == "reward-server-pickle":  # such a server has nothing to ask but for scores
                    url = httpx.URL(self.url)
                    port = url.port or (443 if url.scheme == "https" else 80)
                    _, writer = await asyncio.open_connection(url.host, port)
                    writer.close()
                    return None
                response = await self._http.get(f"{self.url.rstrip('/')}/health")
                if response.status_code == 401:
                    return f"reward {self.term.name}: the server at {self.url} wants another token ({TOKEN})"
                served = response.json()["rewards"] if response.status_code == 200 else None
        except (TimeoutError, OSError, httpx.HTTPError):
            return f"reward {self.term.name}: no server answers at {self.url}"
        except (ValueError, KeyError, TypeError):
            served = None
        if served is None:
            return f"reward {self.term.name}: what answers at {self.url} does not speak this protocol"
        if self.term.name not in served:
            return f"reward {self.term.name}: the server at {self.url} has {', '.join(map(str, served))}"
        return None


def _detail(reply: bytes) -> str:
    """The start of what a server says about an error."""
    try:
        said = json.loads(reply)["detail"]
    except (ValueError, KeyError, TypeError):
        said = reply.decode(errors="replace")
    said = " ".join(str(said).split())[:200]
    return f": {said}" if said else ""
