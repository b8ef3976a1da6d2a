"""Trains the same tiny run twice, with the micro verifier in process and behind a server: run_served.py URL OUT.

Runs in a process of its own, or under torch.distributed.run. The runs are in OUT/here and OUT/served.
"""

import sys
from pathlib import Path

from helpers.micro_runs import CONFIGS, tiny_settings
from htgrpo_ext.workflow.train import train

BASE = CONFIGS.parent / "assets" / "micro-base"  # its images get rewards that differ


def train_both(url: str, out: Path, *more: str) -> None:
    here = "{name: %s, weight: 0.5}"
    served = "{name: %s, weight: 0.5, url: '" + url + "', batch_size: 5}"
    for name, term in (("here", here), ("served", served)):
        terms = f"reward.terms=[{term % 'verdict'}, {term % 'partial'}]"
        train(tiny_settings("htgrpo", BASE, out / name, "rollout.rollouts_per_prompt=9", terms, *more))


if __name__ == "__main__":
    train_both(sys.argv[1], Path(sys.argv[2]), "loop.micro_batches=1")
