"""`htgrpo train` that sends itself a signal: run_signalled.py SIGNAL rollout|update COUNT ARGUMENTS...

In the middle of micro-batch COUNT's rollout, or after optimizer step COUNT, counted from 1 over the whole run.
"""

import os
import signal
import sys
from itertools import count

from helpers import micro_runs
from htgrpo_ext.cli import main
from htgrpo_ext.rewards.mix import Rewards
from htgrpo_ext.rewards.scorers import micro
from htgrpo_ext.train.guard import StepGuard

name, moment, number, *arguments = sys.argv[1:]
owner, method = (Rewards, "begin") if moment == "rollout" else (StepGuard, "close_step")
calls, original = count(1), getattr(owner, method)


def signalled(*given):
    if next(calls) == int(number):
        os.kill(os.getpid(), getattr(signal, name))
    return original(*given)


setattr(owner, method, signalled)
micro.score_codes = micro_runs.even_codes
sys.argv = ["htgrpo", "train", *arguments]
main()
