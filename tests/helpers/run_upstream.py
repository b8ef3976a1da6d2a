"""`htgrpo train --loop upstream` with a reward that a random model's images differ in.

run_upstream.py ARGUMENTS...
"""

import sys

from helpers import micro_runs
from htgrpo_ext.cli import main
from htgrpo_ext.rewards.scorers import micro

micro.score_codes = micro_runs.even_codes
sys.argv = ["htgrpo", "train", *sys.argv[1:]]
main()
