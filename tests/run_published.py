"""`htgrpo train --loop upstream` for METHOD=maskgrpo, with the stub decoder and reward.

run_published.py OUT.pt ARGUMENTS...
"""

import sys

import upstream_stub

from htgrpo_ext.cli import main
from htgrpo_ext.rewards import mix
from htgrpo_ext.train import run, upstream

out, *arguments = sys.argv[1:]
upstream.require_upstream()
from grpo.mask_grpo_trainer import MaskGRPOTrainer  # noqa: E402

seen = upstream_stub.watch(MaskGRPOTrainer)
upstream.magvit_class = lambda: upstream_stub.StubDecoder
mix.load_scorer = lambda term, device: upstream_stub.Brightness()
to_report = upstream.train_to_report


def and_save(state: run.Run, cycles, model):
    folder = to_report(state, cycles, model)
    upstream_stub.save(out, seen, model)
    return folder


upstream.train_to_report = and_save
sys.argv = ["htgrpo", "train", *arguments]
main()
