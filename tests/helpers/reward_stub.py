"""A reward server in a thread of the test, on loopback, that fails on command."""

import base64
import json
import pickle
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from htgrpo_ext.pixels import decode_png

Reply = tuple | None  # status, body and perhaps headers; None ends the connection in the middle of a reply


def brightness(images: list[bytes]) -> list[float]:
    """The stub's scores: each image's mean level, which identifies the image."""
    return [decode_png(image).float().mean().item() for image in images]


def good(request: dict, attempt: int) -> Reply:
    return 200, json.dumps({"scores": brightness(request["images"])}).encode()


@contextmanager
def server(answer: Callable[[dict, int], Reply] = good, port: int = 0, names=("stub",)):
    """(url, requests seen) of a server; `answer` gets the request and the number of earlier ones."""
    seen: list[dict] = []
    connections: list[socket.socket] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self):
            super().setup()
            connections.append(self.connection)

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.reply(200, json.dumps({"rewards": list(names)}).encode())

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Type"] == "application/json":
                request = json.loads(body)
                request["images"] = [base64.b64decode(image) for image in request["images"]]
            else:
                request = pickle.loads(body)
            seen.append(request | {"headers": dict(self.headers)})
            reply = answer(request, len(seen) - 1)
            if reply is not None and "id" in request:  # a right reply returns the id of its request
                echo = b'{"id": "' + request["id"].encode() + b'", "scores"'
                reply = reply[0], reply[1].replace(b'{"scores"', echo), *reply[2:]
            if reply is None:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"scores": [')
                self.close_connection = True
            else:
                self.reply(*reply)

        def reply(self, status, body, headers=()):
            try:
                self.send_response(status)
                for header in ({"Content-Length": str(len(body))} | dict(headers)).items():
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(body)
            except OSError:  # the client hung up
                self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, *_):
            pass

    running = Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", seen
    finally:
        running.shutdown()
        running.server_close()
        for connection in connections:  # as the end of a process would
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def held(event: threading.Event) -> Callable[[dict, int], Reply]:
    """Replies to no request until `event` is set."""

    def answer(request, attempt):
        event.wait(30)
        return good(request, attempt)

    return answer


def seconds_since(start: float) -> float:
    return time.monotonic() - start
