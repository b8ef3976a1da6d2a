"""What the scripts in benchmarks/ share: memory, amounts by part of a program, the speed of matrix products.

This folder is first on the path of its scripts. Nothing here changes the path, because `rollout_speed.py` runs the
package of an older commit.
"""

import ctypes
import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MIB = 2**20
# For a process's environment. Without them, page faults of wide logits double the time of a forward.
KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "40000000000"}


def resident(field: str) -> int:
    """Bytes: VmRSS, what this process holds now, or VmHWM, the most since `forget_peak`. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> None:
    """Begin VmHWM anew. Memory that was freed goes back first: it must not hide what comes next."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


class Peak:
    """Most bytes over those held when it began: of the GPU where there is one, else of the process. At least a page."""

    def __init__(self):
        import torch

        self._gpu = torch.cuda if torch.cuda.is_available() else None
        self.again()
        self._before = self._gpu.memory_allocated() if self._gpu else resident("VmRSS")

    def again(self) -> None:
        """Look for the peak of what comes from here on; it stays over the bytes held at the beginning."""
        if self._gpu:
            self._gpu.reset_peak_memory_stats()
        else:
            forget_peak()

    def over(self) -> int:
        return max((self._gpu.max_memory_allocated() if self._gpu else resident("VmHWM")) - self._before, 4096)


class Parts:
    """How much of an amount (seconds, FLOPs) each part of a program takes; a part inside another counts for itself.

    amount  returns how much there was so far
    rest    the name of what is in no part
    """

    def __init__(self, amount: Callable[[], float] = time.perf_counter, rest: str = "rest"):
        self.taken: Counter[str] = Counter()
        self._amount, self._part, self._since = amount, rest, amount()

    def enter(self, name: str) -> str:
        """From here on `name` takes. Returns the part that did."""
        now, before = self._amount(), self._part
        self.taken[before] += now - self._since  # pyright: ignore[reportArgumentType], a Counter of floats
        self._part, self._since = name, now
        return before

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)


def watch(owner, name: str, inside: Callable) -> None:
    """Wrap a function of a module or object: each call happens in the context that `inside()` returns."""
    function = getattr(owner, name)

    def watched(*arguments, **keywords):
        with inside():
            return function(*arguments, **keywords)

    setattr(owner, name, watched)


def product_rate(shapes: Sequence[tuple[int, int, int]], dtype=None, device="cpu", seconds: float = 1.0) -> float:
    """FLOP/s of one pass through matrix products after another, each [rows, inputs] times [inputs, outputs].

    shapes   rows, inputs and outputs of each product
    seconds  how long passes are repeated
    """
    import torch

    pairs = [
        (torch.randn(n, i, dtype=dtype, device=device), torch.randn(i, o, dtype=dtype, device=device))
        for n, i, o in shapes
    ]

    def one_pass() -> None:
        for a, b in pairs:
            torch.mm(a, b)

    def settle() -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()

    one_pass()
    settle()
    passes, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        one_pass()
        settle()
        passes += 1
    return passes * sum(2 * n * i * o for n, i, o in shapes) / (time.perf_counter() - start)


def last_line(command: Sequence[str | Path], environment: dict[str, str], folder: Path | None = None) -> dict:
    """Run a process; the JSON object that is the last line it prints. Raises RuntimeError with what it said."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def machine(threads: int) -> str:
    """This machine, in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return (
        f"{threads} threads of {os.cpu_count()} cores, {(names or [platform.machine()])[0]}, torch {torch.__version__}"
    )


def _cpu_lines() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []
