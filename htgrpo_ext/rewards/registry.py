"""The rewards that this project knows by name. A row here is all that names one."""

from typing import NamedTuple


class Reward(NamedTuple):
    """Where a reward's scorer is, and where it may run.

    scorer      module below `htgrpo_ext.rewards.scorers`, which has a class `Scorer`; imported when it is needed
    in_process  whether a training process may hold it; the others need an environment, and so a server, of their own
    world       the world whose codes it reads in process, None: it looks at pixels, of any model
    """

    scorer: str
    in_process: bool = False
    world: str | None = None


REWARDS = {
    "verdict": Reward("micro", in_process=True, world="micro"),
    "partial": Reward("micro", in_process=True, world="micro"),
    "clip": Reward("clip", in_process=True),
    "aesthetic": Reward("aesthetic", in_process=True),
    "geneval": Reward("geneval"),
    "hpsv3": Reward("hpsv3"),
    "imagereward": Reward("imagereward"),
    "unifiedreward": Reward("unifiedreward"),
}
