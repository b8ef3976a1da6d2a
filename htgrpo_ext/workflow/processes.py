"""Commands in processes of their own, some at a time, with a bar each. No child outlives this process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from htgrpo_ext.errors import one_line

REFRESH_SECONDS = 1.0
# Linux kills the child when this process dies, also by kill -9; elsewhere it would go on alone.
TIED = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(137)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Job:
    """A command and what is known of it from outside."""

    name: str
    command: Callable[[], Sequence[str]]  # asked for when the command starts
    log: Path  # of its stdout and stderr
    total: int  # parts of the work
    done: Callable[[], int]  # parts that are done
    outcome: Callable[[int], tuple[bool, str]]  # of its exit code: whether it did its work, and what to say
    appends: bool = False  # to the log of an earlier try


def last_words(log: Path) -> str:
    """A command's last `error:` line, which a launcher buries under words of its own; else the last line."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    said = [line for line in lines if line.strip()] or ["nothing said"]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return one_line([*said[-1:], *errors][-1], 300)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stop_on_sigterm() -> None:
    """Take SIGTERM as an exception, so that no child outlives this process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run_jobs(jobs: Sequence[Job], at_once: int, console: Console, threads: bool = True) -> list[Job]:
    """Run all jobs, at most `at_once` at a time, in their order; returns those that failed.

    threads  share the cores among the jobs' threads; not where a launcher does so among the processes of one job
    """
    children: list[subprocess.Popen] = []
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": str(console.width)}
    if threads:
        environment["OMP_NUM_THREADS"] = str(max(1, cores() // at_once))

    def run(job: Job) -> int:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab" if job.appends else "wb") as log:
            words = [sys.executable, "-c", TIED, str(os.getpid()), *job.command()]
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        children.append(child)
        return child.wait()

    failed = []
    pool = ThreadPoolExecutor(at_once)
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars = {job.name: progress.add_task(job.name, total=job.total, start=False) for job in jobs}
        waiting = {pool.submit(run, job): job for job in jobs}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=REFRESH_SECONDS, return_when=FIRST_COMPLETED)
                for future, job in waiting.items():
                    if future.running() or future.done():
                        progress.start_task(bars[job.name])
                        progress.update(bars[job.name], completed=job.done())
                for future in done:
                    job = waiting.pop(future)
                    progress.update(bars[job.name], completed=job.done())
                    progress.stop_task(bars[job.name])
                    good, said = job.outcome(future.result())
                    progress.console.print(said, highlight=False, markup=False, soft_wrap=True)
                    if not good:
                        failed.append(job)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.terminate()
            pool.shutdown()
    return failed
