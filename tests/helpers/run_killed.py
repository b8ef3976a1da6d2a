"""`htgrpo eval generate` that ends in a kill -9: run_killed.py NUMBER RANK ARGUMENTS...

Process RANK kills itself when its NUMBER-th item is written, but not yet under its own name; NUMBER 0: never.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path

from htgrpo_ext.cli import main

number, rank, *arguments = sys.argv[1:]
items, rename = count(1), Path.rename


def dying(self, target):
    mine = self.name.startswith(".partial-") and os.environ.get("RANK", "0") == rank
    if mine and next(items) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)


Path.rename = dying
sys.argv = ["htgrpo", "eval", "generate", *arguments]
main()
