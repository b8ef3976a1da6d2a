"""`htgrpo train` on five held-out prompts, killed -9 while it evaluates: run_held_out.py MOMENT COUNT ARGUMENTS...

MOMENT: `picture`, before the COUNT-th row of pictures is in its place; `best`, between the two renames that put the
COUNT-th best model in the place of the one before; `never`. COUNT is from 1.
"""

import os
import pathlib
import signal
import sys
from itertools import count

from helpers import micro_runs
from htgrpo_ext.benchmarks import MicroEval
from htgrpo_ext.cli import main
from htgrpo_ext.rewards.scorers import micro

moment, number, *arguments = sys.argv[1:]
calls, rename = count(1), pathlib.Path.rename
partial = {"picture": ".partial.png", "best": ".best.partial", "never": "no such name"}[moment]


def dying(self, target):
    if self.name.endswith(partial) and "pictures" not in self.parts[:-2] and next(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)


pathlib.Path.rename = dying
micro.score_codes = micro_runs.even_codes
MicroEval.held_out = lambda self, trained: self.prompts()[:5]
sys.argv = ["htgrpo", "train", *arguments]
main()
