"""An application served by uvicorn in a thread, on a free port of loopback."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn


@contextmanager
def listening(app) -> Iterator[str]:
    """Its url, answering until the block ends; the application is told to end then."""
    up = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            up.set()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(uvicorn.Config(app, log_level="critical", access_log=False))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.start()
        assert up.wait(30)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(30)
