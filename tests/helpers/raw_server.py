"""A server of bytes in a thread of the test, on loopback: it reads HTTP requests and sends what it is told."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SECONDS = 30  # against hangs


def reply(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An HTTP reply that keeps its connection."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def read_request(connection: socket.socket) -> tuple[bytes, bytes] | None:
    """Head and body of the next request, or None at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := connection.recv(65536)):
            return None
        data += part
        if not data[:1].isalpha():  # no HTTP, such as TLS
            return data, b""
    head, _, body = data.partition(b"\r\n\r\n")
    sizes = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < sum(sizes):
        body += connection.recv(65536)
    return head, body


def id_of(body: bytes) -> str | None:
    """The id of a request in JSON."""
    with suppress(ValueError):
        return json.loads(body).get("id")
    return None


@contextmanager
def raw_server(answer: Callable[[bytes, bytes], bytes]) -> Iterator[str]:
    """Its url; `answer` gets head and body of each request, and may raise OSError to close the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(SECONDS)
            while request := read_request(connection):
                connection.sendall(answer(*request))

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(SECONDS)
