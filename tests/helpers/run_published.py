"""`htgrpo train --loop upstream` for METHOD=maskgrpo, with the stub decoder and reward.

run_published.py OUT.pt ARGUMENTS...
"""

import sys

from helpers import upstream_stub
from htgrpo_ext.cli import main
from htgrpo_ext.maskgrpo import launch
from htgrpo_ext.rewards import mix

out, *arguments = sys.argv[1:]
launch.require_upstream()
from grpo.mask_grpo_trainer import MaskGRPOTrainer  # noqa: E402

seen = upstream_stub.watch(MaskGRPOTrainer)
launch.load_magvit = lambda folder: upstream_stub.StubDecoder()
mix.load_scorer = lambda term, device: upstream_stub.Brightness()
save_model = launch.MaskGRPOLoop.save_model


def and_save(loop: launch.MaskGRPOLoop, folder):
    save_model(loop, folder)
    upstream_stub.save(out, seen, loop.trainer.model)


launch.MaskGRPOLoop.save_model = and_save
sys.argv = ["htgrpo", "train", *arguments]
main()
