"""Bounds on requests that are half sent: their time, their number, and the memory they hold.

Headers hold at most 64 KiB, and a body that waits for its turn another 64 KiB. RECEIVING bodies are read at a time, so
all of them hold at most RECEIVING x `--max-mib`.
"""

import asyncio
from asyncio import TimerHandle, Transport
from typing import ClassVar

import h11
from fastapi import HTTPException, Request
from uvicorn.protocols.http.h11_impl import H11Protocol

RECEIVING = 32  # bodies that are read at a time; the others wait in their sockets
MOST_HALF_SENT = 1024  # requests with incomplete headers; also those with an incomplete body
STALL = 10.0  # seconds: for the headers, and for a pause in a body
BODY_SECONDS = 120.0  # for a whole body, once it is its turn
CLOSE = {"Connection": "close"}


class Connection(H11Protocol):
    """Is closed when the headers of a request, or the rest of one that has its reply, take too long to arrive.

    waiting  connections that wait for such, each with its timer; no more than MOST_HALF_SENT
    """

    waiting: ClassVar[dict["Connection", TimerHandle]] = {}

    def connection_made(self, transport: Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] (as uvicorn)
        super().connection_made(transport)
        if len(self.waiting) < MOST_HALF_SENT:
            self._wait()
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self._replied_early:
            self._wait()
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._replied_early:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _replied_early(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE

    def _wait(self) -> None:
        if self not in self.waiting:
            self.waiting[self] = self.loop.call_later(STALL, self.transport.abort)

    def _stop_waiting(self) -> None:
        if timer := self.waiting.pop(self, None):
            timer.cancel()


class Bodies:
    """Reads the bodies of requests, a few at a time.

    most_bytes  of one body
    """

    def __init__(self, most_bytes: int):
        self.most_bytes, self.half_sent = most_bytes, 0
        self._turns = asyncio.Semaphore(RECEIVING)

    async def read(self, request: Request) -> bytes:
        """The body, counted as it arrives, because a Content-Length may be wrong.

        Up to four times the limit is read and thrown away, so that the client can read the reply; then the connection
        is closed. Raises HTTPException: 408 for one that is too slow, 413 for one that is too large, 503 when too many
        are being sent.
        """
        if self.half_sent >= MOST_HALF_SENT:
            raise HTTPException(503, f"{self.half_sent} requests are being sent already", CLOSE)
        self.half_sent += 1
        try:
            async with self._turns, asyncio.timeout(BODY_SECONDS):
                return await self._read(request)
        except TimeoutError:
            raise HTTPException(408, f"the body paused for {STALL:g} s or took {BODY_SECONDS:g} s", CLOSE) from None
        finally:
            self.half_sent -= 1

    async def _read(self, request: Request) -> bytes:
        body, size = bytearray(), 0
        parts = request.stream()
        while True:
            async with asyncio.timeout(STALL):
                part = await anext(parts, None)
            if part is None:
                break
            size += len(part)
            if size <= self.most_bytes:
                body += part
            elif size > 4 * self.most_bytes:
                break
        if size > self.most_bytes:
            raise HTTPException(413, f"more than {self.most_bytes / 2**20:g} MiB (--max-mib)", CLOSE)
        return bytes(body)
