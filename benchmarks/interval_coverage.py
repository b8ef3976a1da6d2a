"""How often 95 % intervals hold the truth, on synthetic benchmarks. Widths are the overall score's, on average.

python benchmarks/interval_coverage.py [--count 1000]
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.synthetic import CEILING, Case, coverage  # noqa: E402

DPG = (0.8,)
CASES = {
    "GenEval, one run": Case(),
    "GenEval, one run, prompts alike": Case(prompts=0.3),
    "GenEval, one run, near the ceiling": Case(CEILING),
    "DPG-Bench overall, one run": Case(DPG),
    "DPG-Bench category, one run": Case(DPG, pooled=True),
    "GenEval, paired difference": Case(gain=0.1),
    "DPG-Bench, paired difference": Case(DPG, gain=0.1),
    "GenEval, paired, both 3 runs, spread 0.1": Case(gain=0.1, runs=3, base_runs=3, spread=0.1),
    **{f"GenEval, {s} runs, spread {x}": Case(runs=s, spread=x) for s in (2, 3, 5) for x in (0.0, 0.05, 0.1, 0.2, 0.4)},
    **{f"DPG-Bench, 3 runs, spread {x}": Case(DPG, runs=3, spread=x) for x in (0.0, 0.05, 0.1, 0.2, 0.4)},
    **{f"GenEval, 3 runs less base, spread {x}": Case(gain=0.1, runs=3, spread=x) for x in (0.0, 0.05, 0.1, 0.2, 0.4)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="synthetic benchmarks of each kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print("| benchmark | overall | width | tasks |\n|---|---:|---:|---|", flush=True)
    for name, case in CASES.items():
        overall, parts, width = coverage(case, given.count, given.seed, each=len(case.means) > 1)
        tasks = " ".join(f"{100 * part:.1f}" for part in parts)
        print(f"| {name} | {100 * overall:.1f} % | {width:.3f} | {tasks} |", flush=True)


if __name__ == "__main__":
    main()
