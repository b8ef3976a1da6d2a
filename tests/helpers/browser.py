"""A page in headless Chromium, driven over its DevTools protocol through a pipe: no package besides the browser.

Found by CHROMIUM, or in PATH. Tests that need it skip, and say so, where it is missing.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 120  # seconds for an answer; a broken browser ends the test instead of hanging it


def chromium() -> str | None:
    """The browser's path; None if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. `errors` has what went wrong on it so far; `requested` what it loaded besides data URIs."""

    def __init__(self, read: int, write: int):
        self._read, self._write, self._buffer, self._last = read, write, b"", 0
        self.errors: list[str] = []
        self.requested: list[str] = []
        self._events: list[str] = []
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, file: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file in a window of this size, as a phone or a desktop would show it."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        for noted in (self.errors, self.requested, self._events):
            noted.clear()
        self._call("Page.navigate", url=file.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._take()

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, as plain data; a promise is awaited."""
        reply = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in reply:
            raise AssertionError(reply["exceptionDetails"]["exception"].get("description", reply))
        return reply["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """A PNG of the whole page."""
        reply = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(reply["data"]))

    def _call(self, method: str, **parameters) -> dict:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (reply := self._take()).get("id") != self._last:
            pass
        assert "error" not in reply, reply
        return reply["result"]

    def _take(self) -> dict:
        """The next message; events are noted."""
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], PATIENCE)[0], "Chromium does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        method, about = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(str(about["args"]))
        elif method == "Network.requestWillBeSent" and not about["request"]["url"].startswith("data:"):
            self.requested.append(about["request"]["url"])
        return message


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A tab of a new Chromium, which keeps its files in `folder` and ends with the block."""
    program = chromium()
    assert program
    their_read, our_write = os.pipe()
    our_read, their_write = os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (their_read, their_write)]
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
    process = subprocess.Popen(
        [program, *flags, f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"],
        pass_fds=(3, 4),  # where Chromium reads and writes
        preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (their_read, their_write, *ends):
        os.close(end)
    try:
        yield Page(our_read, our_write)
    finally:
        process.kill()
        process.wait()
        os.close(our_read)
        os.close(our_write)
