"""The rewards that this project knows by name. A new one needs a file in `scorers/` and a row here."""

from typing import NamedTuple


class Reward(NamedTuple):
    """Where the scorer of a reward is, and where it may run.

    scorer      module in `htgrpo_ext.rewards.scorers` that has a class `Scorer`; it is imported when it is needed
    in_process  True: a training process may hold the scorer. False: it needs its own environment, and so a server
    world       the world whose codes the reward reads in process. None: it reads pixels, of any backbone
    """

    scorer: str
    in_process: bool = False
    world: str | None = None


# launch/rewards has a script for each.
LAUNCHED = ("clip", "deqa", "geneval", "hpsv3", "imagereward", "ocr", "unifiedreward", "unipercept")


def start_command(name: str, port: int | None) -> str:
    """What starts a server of a reward; empty for a reward that is not ours."""
    if name not in REWARDS:
        return ""
    scorer = REWARDS[name].scorer
    start = f"launch/rewards/{scorer}.sh" if scorer in LAUNCHED else f"htgrpo serve-reward {name}"
    return f"{start} --port {port}"


REWARDS = {
    "verdict": Reward("micro", in_process=True, world="micro"),
    "partial": Reward("micro", in_process=True, world="micro"),
    "clip": Reward("clip", in_process=True),
    "aesthetic": Reward("aesthetic", in_process=True),
    "geneval": Reward("geneval"),
    "geneval-strict": Reward("geneval"),
    "hpsv3": Reward("hpsv3"),
    "imagereward": Reward("imagereward"),
    "deqa": Reward("deqa"),
    "iaa": Reward("unipercept"),
    "iqa": Reward("unipercept"),
    "ista": Reward("unipercept"),
    "unifiedreward": Reward("unifiedreward"),
    "ocr": Reward("ocr", in_process=True),
    "ocr-exact": Reward("ocr", in_process=True),
}
