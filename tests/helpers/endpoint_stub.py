"""An OpenAI-compatible server with one model, in a thread of the test, on loopback, that replies on command."""

import base64
import json
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from htgrpo_ext.pixels import decode_png

MODEL = "UnifiedReward"


def saying(text: str | None, finish_reason: str = "stop") -> tuple[int, bytes]:
    """A reply in the published format."""
    choice = {"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": text}}
    return 200, json.dumps({"object": "chat.completion", "model": MODEL, "choices": [choice]}).encode()


@contextmanager
def endpoint(answer: Callable[[dict], tuple[int, bytes]]):
    """(url, requests seen); `answer` gets {"body", "text", "levels", "type", "headers"} of a request."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            models = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
            self.reply(*(200, json.dumps(models).encode()) if self.path == "/v1/models" else (404, b"no such page"))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions"
            (message,) = body["messages"]
            picture, text = message["content"]
            kind, _, data = picture["image_url"]["url"].partition(";base64,")
            request = {"body": body, "text": text["text"], "type": kind, "headers": dict(self.headers)}
            request["levels"] = decode_png(base64.b64decode(data))
            seen.append(request)
            self.reply(*answer(request))

        def reply(self, status, body):
            with suppress(OSError):  # the client hung up
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    running = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", seen
    finally:
        running.shutdown()
        running.server_close()
