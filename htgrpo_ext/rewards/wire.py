"""HTTP as reward clients use it: a connection per request, replies of bounded size, no content encoding.

A connection that is used again could give the late or surplus reply to one request to the next one.
"""

import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from htgrpo_ext.errors import one_line

LARGEST_REPLY = 2**24  # bytes
TRANSIENT = (408, 429)  # statuses below 500 that a retry may cure


class BadReply(Exception):
    """A reply of status 200 that cannot be used; one line."""


def http_client(token: str | None, connections: int) -> httpx.AsyncClient:
    """A client with at most so many connections, and without timeouts; `token` is the bearer token."""
    headers = {"Connection": "close", "Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return httpx.AsyncClient(
        headers=headers,
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=0),
        timeout=None,
        trust_env=False,  # no proxy: the server may be on this host
    )


async def request(
    http: httpx.AsyncClient, method: str, url: str, body: bytes = b"", content_type: str = "application/json"
) -> tuple[int, bytes, httpx.Headers]:
    """Status, body and headers of the reply; the body of an error is empty if it cannot be used.

    Raises BadReply, httpx.TransportError.
    """
    headers = {"Content-Type": content_type} if body else {}
    async with http.stream(method, url, content=body, headers=headers) as response:
        parts = response.aiter_raw()
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        fault, reply = None, bytearray()
        if encoding not in ("", "identity"):
            fault = f"a reply in the content encoding {one_line(encoding, 40)}, which was not asked for"
        while not fault and (part := await anext(parts, None)) is not None:
            reply += part
            if len(reply) > LARGEST_REPLY:
                fault = f"a reply of more than {LARGEST_REPLY} bytes"
    if fault and response.status_code == 200:
        raise BadReply(fault)
    return response.status_code, b"" if fault else bytes(reply), response.headers


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a reply asks to wait, by its Retry-After; 0 if it does not, or cannot be read."""
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return 0.0


def tls_fault(error: BaseException | None) -> str | None:
    """What went wrong with TLS, if it is the cause of an error."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    message = getattr(error, "verify_message", None) or (error.reason or str(error)).replace("_", " ").lower()
    return one_line(message)
