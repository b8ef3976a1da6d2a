"""Measure a whole cycle, methods in turn: rollout, scoring, update, peak memory, rows. `make bench-cycle`

    cycle.py [--case micro] [--case mmada] [--case lumina] [--case 8b] [--repeats 3] [--images G] [--out FILE.json]
    cycle.py --scaling [--axis N] ...      how time and memory grow, and that of the sampler with the images

micro   the default run with 2 prompts a cycle: 9 images each, 8 steps, 8 updates, 2 micro-batches
mmada   a random MMaDA of width 64 and 4 layers, float32, with the real sequence and vocabulary: 1 prompt, 3 images
        (a run has 8 a prompt; so all ends within ten minutes on two cores), 12 steps, guidance 3.5, 8 updates. Pads are
        seen, as in MaskGRPO
lumina  the same for Lumina-DiMOO, 512 x 512 pixels. Pads are cut
8b      a random MMaDA-8B in bfloat16 with adapters as configured, 1 prompt, 8 images. Only where there is a GPU; this
        case was never run

Each method is a process of its own; all are loaded, and then train a cycle each in turn. Rewards of mmada and lumina,
and their decoders, are stand-ins. MaskGRPO as published needs upstream/ with its patches; it knows only MMaDA. It
scores all K*G rows in one batch; here it goes rollout by rollout, because a small machine cannot hold that. Without
it, and for the other models, its place is taken by our method `maskgrpo`.

Seconds are of the wall clock: measure on a quiet machine. Linux only (/proc).
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # tests/ makes the checkpoints

import cycle_report  # noqa: E402
from cycle_cases import CASES, ON_REQUEST, ROWS, Case, Row, Worker, compared, rows_of, why_no_upstream  # noqa: E402
from cycle_scaling import scaling  # noqa: E402
from measuring import machine  # noqa: E402


def measured(case: Case, rows: dict[str, Row], repeats: int, threads: int, profile: bool) -> dict:
    """Cycles of all rows in turn, `repeats` times, and a profile of the first row's."""
    runs: dict[str, list[dict]] = {name: [] for name in rows}
    with tempfile.TemporaryDirectory() as folder:
        changes = case.changes(Path(folder))
        workers = {name: Worker(row, case, changes, Path(folder) / name, threads) for name, row in rows.items()}
        try:
            for worker in workers.values():
                worker.answer()
            for _ in range(repeats):
                for name, worker in workers.items():
                    runs[name].append(worker.ask("cycle"))
                    print(f"{worker.title}: {runs[name][-1]['seconds']['cycle']:.1f} s", file=sys.stderr, flush=True)
            found = {"runs": runs, **({"profile": workers["htgrpo"].ask("profile")} if profile else {})}
        finally:
            for worker in workers.values():
                worker.end()
    return found


def speeds(profile: dict, medians: dict) -> dict[str, dict[str, float]]:
    """FLOP/s that HT-GRPO's rollout, scoring and update reached, and shares of what matrix products reach here."""
    found = {}
    for part in ("rollout", "score", "update"):
        rate = profile["flops"][part] / medians["seconds"][part]
        shares = {"share": rate / profile["attainable"], "share of square": rate / profile["square"]}
        found[part] = {"achieved": rate, "attainable": profile["attainable"], **shares}
    return found


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description="A whole cycle, methods in turn", epilog="See the file's first lines.")
    parser.add_argument("--case", action="append", choices=CASES, help="default: all that this machine can run")
    parser.add_argument("--row", action="append", choices=ROWS, help="beside htgrpo; default: all but htgrpo-compiled")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, help="P of all cases")
    parser.add_argument("--images", type=int, help="G of all cases")
    parser.add_argument("--steps", type=int, help="T of all cases")
    parser.add_argument("--updates", type=int, help="K of all cases")
    parser.add_argument("--size", help="WIDTH,LAYERS of mmada and lumina (default 64,4)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-profile", action="store_true", help="leave out FLOPs and profile")
    parser.add_argument("--scaling", action="store_true", help="measure how time and memory grow instead")
    parser.add_argument("--axis", action="append", help="of --scaling: N, G, K, T, processes or images; default: all")
    parser.add_argument("--out", type=Path, help="JSON file; default: cycle.json or cycle-scaling.json, beside this")
    parser.add_argument("--plot", type=Path, help="PNG file; default: docs/cycle.png or docs/cycle-scaling.png")
    given = parser.parse_args()
    if given.scaling:
        scaling(given)
        return
    gpu, missing = torch.cuda.is_available(), why_no_upstream()
    named = given.case or [name for name in CASES if gpu or name != "8b"]
    if "8b" in named and not gpu:
        parser.error("8b needs a GPU")
    if not given.case and not gpu:
        print("left out: 8b needs a GPU, and there is none; that case was never run", file=sys.stderr)
    found: dict = {"date": date.today().isoformat(), "machine": machine(given.threads), "repeats": given.repeats}
    found["cases"] = {}
    console = cycle_report.console()
    for name in named:
        changed = {key: getattr(given, key) for key in ("prompts", "images", "steps", "updates")}
        if given.size and name in ("mmada", "lumina"):
            changed |= dict(zip(("width", "layers"), map(int, given.size.split(",")), strict=True))
        case = replace(CASES[name], **{key: value for key, value in changed.items() if value})
        rows, left_out = rows_of(case, missing)
        asked = given.row or [key for key in ROWS if key not in ON_REQUEST]
        rows = {key: row for key, row in rows.items() if key in ("htgrpo", *asked)}
        one = measured(case, rows, given.repeats, given.threads, not given.no_profile)
        one |= {"sizes": vars(case) | {"more": list(case.more)}, "left_out": left_out, "table": compared(one["runs"])}
        one["titles"] = {key: row.title for key, row in rows.items()}
        if "profile" in one:
            one["speeds"] = speeds(one["profile"], one["table"]["htgrpo"])
        found["cases"][name] = one
        cycle_report.show_case(console, name, one)
        found["targets"] = cycle_report.targets(found["cases"])
        out = given.out or ROOT / "benchmarks" / "cycle.json"
        out.write_text(json.dumps(found, indent=1) + "\n")
    cycle_report.show_targets(console, found)
    cycle_report.plot_cases(found, given.plot or ROOT / "docs" / "cycle.png")
    console.print(str(out))


if __name__ == "__main__":
    main()
