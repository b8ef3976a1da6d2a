"""`htgrpo train` that also records every rollout's reward: run_recorded.py FOLDER ARGUMENTS..

FOLDER/RANK.jsonl has a line per rollout batch: of each rollout the prompt's `fault`, the mean levels of its image, its
reward and advantage, and whether it was kept.
"""

import json
import sys
from pathlib import Path

from htgrpo_ext import cli
from htgrpo_ext.pixels import to_levels
from htgrpo_ext.rewards import client
from htgrpo_ext.rewards.mix import Rewards
from htgrpo_ext.train import run


class RecordedRewards(Rewards):
    def begin(self, prompts, codes_BN, images):
        levels = to_levels(images()).double()
        self.seen = {
            "fault": [prompt["fault"] for prompt in prompts],
            "bright": levels.mean((1, 2, 3)).tolist(),
            "red": levels[:, 0].mean((1, 2)).tolist(),
        }
        return super().begin(prompts, codes_BN, images)

    def finish(self, *pending):
        judged = super().finish(*pending)
        worth = {"reward": judged.reward_B, "advantage": judged.advantage_B, "kept": judged.kept_B}
        with (folder / f"{self.processes.process_index}.jsonl").open("a") as file:
            file.write(json.dumps(self.seen | {key: value.tolist() for key, value in worth.items()}) + "\n")
        return judged


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    client.FIRST_WAIT = 0.2
    run.Rewards = RecordedRewards
    cli.main()
