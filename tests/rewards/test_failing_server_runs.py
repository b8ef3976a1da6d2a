"""Whole runs with a reward server that fails: no wrong score, no hang, and all processes agree."""

import json
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from helpers.micro_runs import CONFIGS, records, tiny_checkpoint, tiny_overrides, tiny_settings
from helpers.paths import HELPERS
from helpers.reward_stub import good, server
from htgrpo_ext.errors import UserError
from htgrpo_ext.micro import world
from htgrpo_ext.pixels import decode_png
from htgrpo_ext.workflow.train import train

G = 3  # rollouts per prompt of a tiny run


def stub_settings(url: str, *more: str) -> tuple[str, ...]:
    terms = f"[{{name: stub, weight: 1.0, url: '{url}', batch_size: 3}}]"
    return (f"reward.terms={terms}", "reward.retries=0", "reward.deadline=10", "loop.cycles=3", *more)


def run_command(processes: int, program: list[str], checkpoint: Path, out: Path, *more: str):
    """The result of a tiny run by command."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [*program, "train", str(CONFIGS / "model/micro.yaml"), str(CONFIGS / "method/htgrpo.yaml")]
    budget = "method.budget={global: 1, structure: 1, refinement: 0}"
    command += [part for pair in tiny_overrides(checkpoint, out, budget, *more) for part in ("--set", pair)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def faulty(request, n):
    """Of six requests, two a cycle: one fails in the first cycle, both in the second, none in the third."""
    return (400, b"") if n in (0, 2, 3) else good(request, n)


def test_training_continues_without_the_lost_groups(checkpoint, tmp_path):
    with server(faulty) as (url, _):
        folder = train(tiny_settings("htgrpo", checkpoint, tmp_path / "run", *stub_settings(url)))
    assert [cycle["failed_groups"] for cycle in records(folder, "cycle")] == [1, 2, 0]
    assert [cycle["reward_mean"] is None for cycle in records(folder, "cycle")] == [False, True, False]
    steps = [r["step"] for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "step" in r]
    assert steps == [1, 2, 5, 6]  # no step without scores: Adam's momentum would move the weights
    assert (folder / "report.html").exists()


def test_a_server_that_is_down_is_reported_before_a_model_is_loaded(tmp_path):
    (tiny_checkpoint(tmp_path / "model") / "model.safetensors").unlink()
    settings = tiny_settings("htgrpo", tmp_path / "model", tmp_path / "run", *stub_settings("http://127.0.0.1:9"))
    with pytest.raises(UserError, match="^reward stub: no server answers at http://127.0.0.1:9$"):
        train(settings)


@pytest.mark.parametrize("stop", [False, True], ids=["drop-group", "stop"])
def test_two_processes_agree_on_the_lost_groups(stop, checkpoint, tmp_path):
    """The server refuses one prompt's images, a group of one process; both go on, or both stop."""

    def answer(request, n):
        return (400, b'{"detail": "never"}') if refused(request) else good(request, n)

    prompts: list[str] = []

    def refused(request):
        prompts.append(request["prompts"][0]["prompt"])
        return request["prompts"][0]["prompt"] == prompts[0]

    out = tmp_path / "two"
    with server(answer) as (url, _):
        more = stub_settings(url, "loop.cycles=1", "loop.micro_batches=1")
        more += ("reward.on_failure=stop",) if stop else ()
        done = run_command(2, ["-m", "htgrpo_ext.cli"], checkpoint, out, *more)
    if stop:
        assert done.returncode != 0 and "reward.on_failure is stop" in done.stderr
    else:
        assert done.returncode == 0, done.stderr[-3000:]
        assert [(c["failed_groups"], c["groups"]) for c in records(out, "cycle")] == [(1, 2)]


class Touches:
    """Its pickle makes a file when it is loaded by `pickle`."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


class FailingServer:
    """Two rewards behind one port: `stub`, and by pickles `old`. Each prompt names its fault in `fault`.

    When a prompt comes a second time, the server ends and does not come back.
    """

    LOST = ("slow", "500", "400", "cut", "count", "nan", "garbage", "attack", "old nan")
    KEPT = ("500 once", "restart", "fine 0", "fine 1", "fine 2", "fine 3", "fine 4")

    def __init__(self, mark: Path):
        self.mark, self.tries, self.images = mark, Counter(), {}
        self.released, self.lock, self.alive = threading.Event(), threading.Lock(), True

    def __enter__(self):
        self.context = server(self.answer, names=("stub", "old"))
        self.url = self.context.__enter__()[0]
        return self

    def __exit__(self, *_):
        self.released.set()
        if self.alive:
            self.context.__exit__(None, None, None)

    def close(self, again: bool) -> None:
        """End the server as the end of its process would; start another on its port if `again`."""
        with self.lock:
            if self.alive:
                self.alive = again
                self.context.__exit__(None, None, None)
                if again:
                    self.context = server(self.answer, port=int(self.url.rpartition(":")[2]), names=("stub", "old"))
                    self.context.__enter__()

    def answer(self, request, _):
        old = "meta_datas" in request
        fault = request["meta_datas" if old else "prompts"][0]["fault"]
        key = fault, old
        if self.images.setdefault(key, request["images"]) != request["images"]:
            self.close(again=False)
            return None
        self.tries[key] += 1
        right = self.red(request) if old else good(request, 0)
        if old:
            attack, nan = {"scores": [1.0] * G, "x": Touches(self.mark)}, {"scores": np.array([1.0, np.nan, 2.0])}
            return 200, {"attack": pickle.dumps(attack), "old nan": pickle.dumps(nan)}.get(fault, right[1])
        if fault == "slow":
            self.released.wait(60)
        if fault == "restart" and self.tries[key] == 1:
            self.close(again=True)
        if fault == "500 once":
            return (500, b"") if self.tries[key] == 1 else right
        answers = {"500": (500, b""), "400": (400, b""), "cut": None, "count": (200, b'{"scores": [1.0, 2.0]}')}
        answers |= {"nan": (200, b'{"scores": [1.0, NaN, 2.0]}'), "garbage": (200, b"\x80\x04garbage")}
        return answers.get(fault, right)

    def red(self, request):
        scores = [decode_png(image)[0].float().mean().item() for image in request["images"]]
        return 200, pickle.dumps({"scores": np.array(scores)})


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_survives_a_server_that_fails_in_every_way(processes, checkpoint, tmp_path):
    """Eight cycles of two groups, each group with a fault of its own or none; then the server is gone."""
    faults = FailingServer.LOST + FailingServer.KEPT
    prompts = world.split_prompts(1)[0][:: len(world.split_prompts(1)[0]) // len(faults)]
    lines = [json.dumps(prompt | {"fault": fault}) for prompt, fault in zip(prompts, faults, strict=False)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    (tmp_path / "record").mkdir()
    with FailingServer(tmp_path / "executed") as failing:
        terms = f"{{name: stub, weight: 1.0, url: '{failing.url}', batch_size: 3}}, "
        terms += f"{{name: old, weight: 0.5, url: '{failing.url}', batch_size: 3, protocol: reward-server-pickle}}"
        settings = [f"prompts=[{{format: geneval, path: '{tmp_path / 'prompts.jsonl'}'}}]", f"reward.terms=[{terms}]"]
        settings += ["reward.retries=2", "reward.deadline=4", "loop.cycles=20", "loop.micro_batches=1", "seed=1"]
        settings += ["reward.max_failed_share=0.14"]  # six lost batches with seed 1, and one more; of 50
        program = [str(HELPERS / "run_recorded.py"), str(tmp_path / "record")]
        done = run_command(processes, program, checkpoint, tmp_path / "run", *settings)
        tries = failing.tries
    # It went on through every fault and one batch without a server, and stopped at the next.
    assert done.returncode == (2 if processes == 1 else 1), done.stderr[-3000:]
    said = "8 of the last 10 rollout batches lost a group to a reward that failed"
    assert said in done.stderr and "ConnectError" in done.stderr
    assert not (tmp_path / "executed").exists() and ("attack", True) in tries

    # Every rollout that was kept has the scores of its own image; the others have no part in training.
    ranks = [list(map(json.loads, file.read_text().splitlines())) for file in sorted((tmp_path / "record").iterdir())]
    assert len(ranks) == processes and all(len(cycles) == 9 for cycles in ranks)
    judged: dict[str, bool] = {}
    for batches in zip(*ranks, strict=True):
        rows = {key: [value for batch in batches for value in batch[key]] for key in batches[0]}
        for start in (0, G):
            fault, *group = (rows[key][start : start + G] for key in rows)
            bright, red, reward, advantage, kept = map(np.array, group)
            assert len(set(fault)) == 1 and len(set(kept)) == 1
            dead = fault[0] in judged
            if not dead:
                judged[fault[0]] = bool(kept[0])
            if dead or not kept[0]:
                assert not advantage.any() and not kept.any()
                continue
            own = bright + 0.5 * red
            assert reward == pytest.approx(own, rel=1e-5) and own.std() > 0
            assert advantage == pytest.approx((own - own.mean()) / own.std(ddof=1), abs=1e-2)
    assert judged == {fault: fault in FailingServer.KEPT for fault in faults}
    assert [tries[fault, False] for fault in ("500", "cut", "500 once", "400", "nan", "count")] == [3, 3, 2, 1, 1, 1]
    cycles = records(tmp_path / "run", "cycle")
    assert [cycle["failed_groups"] for cycle in cycles] == [
        sum(not all(batch["kept"][start : start + G]) for batch in batches for start in range(0, len(batch["kept"]), G))
        for batches in zip(*ranks, strict=True)
    ]
