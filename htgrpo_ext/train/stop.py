"""SIGTERM and Control-C: training ends where nothing is lost, and says so."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from htgrpo_ext.errors import Stopped
from htgrpo_ext.train.processes import gathered

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Catches SIGTERM and Control-C while it is entered; the second of a kind has its usual effect.

    The first raises Stopped at once. Inside `postponed` it is only noted, and `check` raises.
    """

    def __init__(self):
        self._signum = 0
        self._postponed = False
        self._handlers: dict = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self._handlers = {signum: signal.signal(signum, self._receive) for signum in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for signum in list(self._handlers):
            self._restore(signum)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Inside, a signal waits for the next `check`."""
        self._postponed = True
        try:
            yield
        finally:
            self._postponed = False
        if self._signum:  # it arrived after the last check
            raise stopped(self._signum)

    def check(self) -> None:
        """Raise Stopped on all processes if any received a signal. All must call it together."""
        if signum := int(gathered(torch.tensor([self._signum])).max()):
            raise stopped(signum)

    def _receive(self, signum: int, _) -> None:
        self._restore(signum)
        self._signum = signum
        if not self._postponed:
            raise stopped(signum)
        name = signal.Signals(signum).name
        # Not print: the signal may have arrived in the middle of one.
        os.write(2, f"{name}: the run stops after this cycle; a second {name} stops it at once\n".encode())

    def _restore(self, signum: int) -> None:
        handler = self._handlers.pop(signum)
        signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def stopped(signum: int) -> Stopped:
    return Stopped(f"stopped by {signal.Signals(signum).name}", signum)
