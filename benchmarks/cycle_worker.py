"""Cycles of one method on one model, in a process of its own. `cycle.py` starts it and says when a cycle is its turn.

    cycle_worker.py '{"model": "mmada", "row": "htgrpo", "changes": [...], "updates": 8, "out": "/folder"}'

Commands are lines on stdin; each is answered by one JSON object on stdout, where nothing else is printed:

    cycle    trains one cycle: seconds by part, CPU seconds, rows, peaks over the model in bytes
    profile  trains two: FLOPs by part and kind, shares of the time by part, attainable FLOP/s. Our loop only

With "cycles": n in the argument it trains n cycles and reads no commands; under torchrun the first process answers.

Parts are `rollout`, `score` (old and reference policy, before the first update), `reward`, and `update`, the rest of a
cycle: loss, backward, optimizer, records. Rows are `rollout`, `scored` (without gradient) and `trained` (with).
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/ has the stand-ins

import torch  # noqa: E402
from cycle_profile import counted, profiled, shapes_of  # noqa: E402
from measuring import Parts, Peak, product_rate, watch  # noqa: E402
from shapes import LLADA, settings_of, use_stand_ins  # noqa: E402

PROMPT = "a photo of the red cat beside two dog"


def settled_time() -> float:
    """Seconds, after the GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Meter:
    """Measures one cycle after another."""

    amount: Callable[[], float] = settled_time
    parts: Parts = field(init=False)

    def begin(self) -> None:
        self._peak, self._peaks = Peak(), {"rollout": 0, "score and update": 0}
        self.parts, self._cpu = Parts(self.amount, rest="update"), time.process_time()

    def end(self, rows: dict[str, int]) -> dict:
        self.parts.enter("done")
        taken = {part: self.parts.taken[part] for part in ("rollout", "score", "reward", "update")}
        seconds = taken | {"cycle": sum(taken.values())}
        cpu = time.process_time() - self._cpu  # of all threads: other work changes it less
        self._peaks["score and update"] = self._peak.over()
        return {"seconds": seconds, "cpu": cpu, "rows": rows, "peaks": self._peaks}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The profiler sees it too. What follows the last rollout has a peak of its own."""
        with torch.profiler.record_function(f"part {name}"), self.parts.part(name):
            yield
        if name == "rollout":
            with self.parts.part("measuring"):
                self._peaks[name] = max(self._peaks[name], self._peak.over())
                self._peak.again()

    def watch(self, owner, name: str, part: str) -> None:
        watch(owner, name, lambda: self.part(part))


def by_use(rows: Counter[str]) -> dict[str, int]:
    """Rows of our own forwards, which count by policy."""
    return {"rollout": rows["rollout"], "scored": rows["old"] + rows["reference"], "trained": rows["new"]}


class Commands:
    """What to do next, and where the answers go."""

    def __init__(self, cycles: int | None):
        self._lines: Iterator[str] = iter(sys.stdin if cycles is None else ["cycle"] * cycles)
        self._first = int(os.environ.get("RANK", 0)) == 0
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever else is printed

    def next(self) -> str:
        """The next command. There is no return from the last: the process ends."""
        line = next(self._lines, None)
        if line is None:
            self.leave()
        return line.strip()

    def answer(self, found: dict) -> None:
        if self._first:
            print(json.dumps(found), file=self._answers, flush=True)

    def leave(self) -> NoReturn:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os._exit(0)  # the loops are in the middle of a run, and would save it


def in_our_loop(settings, meter: Meter, commands: Commands) -> None:
    """The native loop, cycle by cycle."""
    from htgrpo_ext.train import native

    meter.watch(native, "generate", "rollout")
    meter.watch(native, "score_micro_batches", "score")
    loop = native.start(settings)
    watch_rewards(loop.run, meter)

    def one_cycle() -> dict:
        meter.begin()
        native.train_cycle(loop, loop.cycles_done)
        return meter.end(by_use(loop.forward.rows))

    commands.answer({"ready": True})
    while command := commands.next():
        if command == "cycle":
            commands.answer(one_cycle())
            continue
        flops = counted(meter, one_cycle)
        shares = profiled(one_cycle)
        weight = next(loop.backbone.model.parameters())
        attainable, square = (
            product_rate(shapes, weight.dtype, str(weight.device))
            for shapes in (shapes_of(loop.backbone), [(1024, 1024, 1024)])
        )
        commands.answer({"flops": flops, "shares": shares, "attainable": attainable, "square": square})


def watch_rewards(run, meter: Meter) -> None:
    meter.watch(run.rewards, "begin", "reward")
    meter.watch(run.rewards, "finish", "reward")


def in_their_loop(settings, meter: Meter, commands: Commands) -> None:
    """Our method in MaskGRPO's loop: it trains by itself, and waits for its turn at the border of two cycles."""
    from transformers import TrainerCallback

    from htgrpo_ext.maskgrpo import extension, launch

    meter.watch(extension, "generate", "rollout")
    meter.watch(extension, "score", "score")
    loop = launch.start(settings)
    watch_rewards(loop.run, meter)
    trainer: Any = loop.trainer

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, **_) -> None:
            if state.global_step % settings.loop.updates_per_rollout == 0:
                commands.next()
                meter.begin()

    def end_cycle(cycles_done: int) -> None:
        commands.answer(meter.end(by_use(trainer.extension.forward.rows)))

    trainer.add_callback(Turns())
    trainer.end_cycle = end_cycle
    commands.answer({"ready": True})
    loop.train()


def as_published(settings, meter: Meter, commands: Commands) -> None:
    """MaskGRPO's own functions: rollouts image by image, as it does it; scores and updates too, to fit into memory."""
    import scoring_cost

    trainer = scoring_cost.make_trainer(settings)
    G, K = settings.rollout.rollouts_per_prompt, settings.loop.updates_per_rollout
    scoring_cost.K = K
    rows = scoring_cost.Meter(trainer.model).rows
    advantage_G = torch.linspace(-1.0, 1.0, G)

    @torch.no_grad()
    def rolled_out() -> torch.Tensor:
        ids, seen, _ = trainer.prepare_inputs_uni([PROMPT] * G, "t2i", trainer.accelerator.device)
        (ids_GS, nobody_GS), (seen_GS, nobody_seen_GS) = ids.split(G), seen.split(G)
        images = [
            trainer.t2i_generate_emerge(
                model=trainer.model,
                input_ids=ids_GS[g : g + 1],
                uncond_input_ids=nobody_GS[g : g + 1],
                attention_mask=seen_GS[g : g + 1],
                uncond_attention_mask=nobody_seen_GS[g : g + 1],
                guidance_scale=trainer.args.cfg_scale,
                resolution=trainer.uni_prompting.max_text_len,
            )
            for g in range(G)
        ]
        return torch.cat(images)

    commands.answer({"ready": True})
    while commands.next():
        rows.clear()
        meter.begin()
        trainer.model.train()  # as transformers leaves it
        with meter.part("rollout"):
            ids_GS = rolled_out()
        rollout = rows["forward"]
        with meter.part("score"):
            batch = scoring_cost.maskgrpo_scores(trainer, ids_GS, advantage_G)
        scoring_cost.maskgrpo_updates(trainer, batch, K, lambda loss: loss.backward())
        trained, forward = rows["backward"], rows["forward"]
        commands.answer(meter.end({"rollout": rollout, "scored": forward - rollout - trained, "trained": trained}))


def main() -> None:
    given = json.loads(sys.argv[1])
    commands = Commands(given.get("cycles"))
    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    loop, method = given["loop"], given["method"]
    changes = [*given["changes"], f"out={given['out']}", "loop.cycles=1000", "loop.save_steps=1000"]
    changes += ["loop.save_minutes=null", "log.tensorboard=false", "eval=null"]
    settings = settings_of(given["model"], method, changes, given.get("updates"))
    if given["model"] in LLADA:
        use_stand_ins()
    run = {"ours": in_our_loop, "theirs": in_their_loop, "published": as_published}[loop]
    run(settings, Meter(), commands)


if __name__ == "__main__":
    main()
