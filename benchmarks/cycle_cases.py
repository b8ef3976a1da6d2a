"""The rows and cases of `cycle.py`, the processes that run them, and the comparison of what they measured.

P prompts, G images a prompt, T steps, K updates.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from measuring import KEEP_FREED
from shapes import STAND_INS, real_shape, tiny_checkpoint

PEAKS = ("rollout", "score and update")


class Row(NamedTuple):
    """A method in a loop: `ours`, `theirs` (MaskGRPO's), or `published`."""

    title: str
    method: str
    loop: str
    more: tuple[str, ...] = ()  # changes of settings


ROWS = {
    "htgrpo": Row("HT-GRPO", "htgrpo", "ours"),
    "htgrpo-reuse": Row("HT-GRPO, rollout.reuse 3", "htgrpo", "ours", ("rollout.reuse={refresh: 3}",)),
    "htgrpo-compiled": Row("HT-GRPO, loop.compile", "htgrpo", "ours", ("loop.compile=default",)),
    "htgrpo-theirs": Row("HT-GRPO in MaskGRPO's loop", "htgrpo", "theirs"),
    "published": Row("MaskGRPO as published", "maskgrpo", "published"),
    "maskgrpo": Row("MaskGRPO as published, our code", "maskgrpo", "ours"),
    "maskgrpo-fixed": Row("MaskGRPO fixed", "maskgrpo-fixed", "ours"),
    "tracegrpo": Row("TraceGRPO", "tracegrpo", "ours"),
}
ON_REQUEST = ("htgrpo-compiled",)  # its first cycles compile, so three say nothing


@dataclass(frozen=True)
class Case:
    """A model and the size of its cycle. None: as configured."""

    model: str
    prompts: int  # P
    images: int  # G
    steps: int | None = None  # T
    updates: int = 8  # K
    micro_batches: int = 1
    width: int = 64
    layers: int = 4
    more: tuple[str, ...] = ()  # changes of settings

    def changes(self, folder: Path) -> list[str]:
        """Changes of settings, with the checkpoint that is made in `folder`."""
        changes = [
            f"rollout.prompts_per_cycle={self.prompts}",
            f"rollout.rollouts_per_prompt={self.images}",
            f"loop.micro_batches={self.micro_batches}",
        ]
        changes += [f"rollout.steps={self.steps}"] * (self.steps is not None)
        return [*changes, *self.checkpoint(folder), *self.more]

    def checkpoint(self, folder: Path) -> list[str]:
        if self.model == "micro":
            return []
        checkpoint = folder / f"{self.model}-{self.width}"
        if self.width < 1024:
            return real_shape(self.model, tiny_checkpoint(self.model, checkpoint, self.width, self.layers))
        from real_size import write_checkpoint

        write_checkpoint(checkpoint, self.width, self.layers)
        return [f"model.checkpoint={checkpoint}", f"model.vq_checkpoint={checkpoint}", *STAND_INS]


CASES = {
    "micro": Case("micro", prompts=2, images=9, micro_batches=2),
    "mmada": Case("mmada", prompts=1, images=3),
    "lumina": Case("lumina", prompts=1, images=3),
    "8b": Case("mmada", prompts=1, images=8, width=4096, layers=32),
}


def why_no_upstream() -> str | None:
    """Why MaskGRPO's code cannot be run here, or None."""
    from htgrpo_ext.errors import UserError
    from htgrpo_ext.maskgrpo.launch import require_upstream

    try:
        require_upstream()
    except UserError as error:
        return str(error)
    return None


def rows_of(case: Case, missing: str | None) -> tuple[dict[str, Row], list[str]]:
    """The rows that can be measured, and why others cannot; `missing` says why MaskGRPO's code is not there."""
    from htgrpo_ext.maskgrpo.launch import PUBLISHED_STEPS

    rows, left_out = dict(ROWS), []
    why = missing
    if case.model != "mmada":
        why = "its code knows only MMaDA"
    elif case.steps not in (None, PUBLISHED_STEPS):
        why = f"it always samples in {PUBLISHED_STEPS} steps"
    if missing:
        left_out.append(f"{rows.pop('htgrpo-theirs').title}: {missing}")
    if why:
        left_out.append(f"{rows.pop('published').title}: {why}; our method `maskgrpo` instead")
    else:
        rows.pop("maskgrpo")
    return rows, left_out


class Worker:
    """A process of `cycle_worker.py`, or several under torchrun.

    cycles  how many it trains by itself; None: it is asked for each
    """

    def __init__(
        self,
        row: Row,
        case: Case,
        changes: list[str],
        folder: Path,
        threads: int,
        processes: int = 1,
        cycles: int | None = None,
    ):
        self.title, self._said = row.title, folder / "stderr"
        folder.mkdir()
        given = {"model": case.model, "method": row.method, "loop": row.loop, "changes": [*changes, *row.more]}
        given |= {"updates": case.updates, "out": str(folder / "run"), "cycles": cycles}
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = {"OMP_NUM_THREADS": str(threads), "WANDB_MODE": "disabled", **KEEP_FREED}
        self._process = subprocess.Popen(
            [sys.executable, *launcher * (processes > 1), Path(__file__).parent / "cycle_worker.py", json.dumps(given)],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said.open("w"),
            text=True,
        )

    def answer(self) -> dict:
        """The next answer. Raises RuntimeError, with what the process said, if there is none."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.title}: {self._said.read_text()[-3000:]}")
        return json.loads(line)

    def ask(self, command: str) -> dict:
        assert self._process.stdin
        print(command, file=self._process.stdin, flush=True)
        return self.answer()

    def end(self) -> None:
        """No further command."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def compared(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """Medians of each row, and the medians of its ratios to HT-GRPO's cycle of the same turn."""
    table = {}
    for name, cycles in runs.items():
        seconds = {part: median(c["seconds"][part] for c in cycles) for part in cycles[0]["seconds"]}
        pairs = list(zip(cycles, runs["htgrpo"], strict=True))
        ratios = {
            part: median(a["seconds"][part] / b["seconds"][part] for a, b in pairs) for part in ("rollout", "cycle")
        }
        ratios["score and update"] = median(trained(a) / trained(b) for a, b in pairs)
        ratios |= {f"peak of {part}": median(a["peaks"][part] / b["peaks"][part] for a, b in pairs) for part in PEAKS}
        peaks = {part: median(c["peaks"][part] for c in cycles) for part in PEAKS}
        table[name] = {"seconds": seconds, "peaks": peaks, "rows": cycles[-1]["rows"], "ratios": ratios}
    return table


def trained(cycle: dict) -> float:
    """Seconds of scoring and update."""
    return cycle["seconds"]["score"] + cycle["seconds"]["update"]
