"""`htgrpo train` in several processes, one of which meets a NaN: run_spoiled.py COUNT ARGUMENTS...

The second process's loss is NaN when the guard is told for the COUNT-th time, counted from 1; gradients stay finite.
"""

import os
import sys
from itertools import count

import torch

from helpers import micro_runs
from htgrpo_ext.cli import main
from htgrpo_ext.rewards.scorers import micro
from htgrpo_ext.train.guard import StepGuard

number, *arguments = sys.argv[1:]
calls, original = count(1), StepGuard.watch


def spoiled(self, *values):
    spoil = next(calls) == int(number) and os.environ["RANK"] == "1"
    return original(self, *values, *([torch.tensor(torch.nan)] if spoil else []))


StepGuard.watch = spoiled
micro.score_codes = micro_runs.even_codes
sys.argv = ["htgrpo", "train", *arguments]
main()
