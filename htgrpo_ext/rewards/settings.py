"""The `reward` section of a run's settings. configs/model/micro.yaml says what each key means."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from htgrpo_ext.rewards.registry import REWARDS, Reward
from htgrpo_ext.section import Positive, Rows, Seconds, Section, Share


class RewardTerm(Section):
    name: str
    weight: Positive
    scale: Positive = 1.0
    url: str | None = None
    protocol: Literal["json", "reward-server-pickle"] = "json"
    options: dict[str, str | int | float | bool] = {}
    device: str | None = None
    batch_size: Rows = 16
    timeout: Seconds = 60.0

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or name == "reward":
            raise ValueError(f"`{name}` cannot be a reward's name (small letters, digits, - and _; not `reward`)")
        return name

    @property
    def in_process(self) -> Reward | None:
        """The row of `REWARDS` if this process scores the reward, None if a server does."""
        return REWARDS.get(self.name) if self.url is None else None

    @model_validator(mode="after")
    def _runs_somewhere(self) -> Self:
        if self.url is None and not (self.in_process and self.in_process.in_process):
            here = ", ".join(sorted(name for name, reward in REWARDS.items() if reward.in_process))
            raise ValueError(f"reward `{self.name}` needs the url of a server (in process: {here})")
        if self.url is not None and not re.match(r"https?://[^/]", self.url):
            raise ValueError(f"url must begin with http:// or https:// (got {self.url!r})")
        if self.url is None and self.protocol != "json":
            raise ValueError(f"protocol {self.protocol} needs the url of a server")
        if (self.options or self.device) and (self.in_process is None or self.in_process.world):
            raise ValueError(f"`options` and `device` apply only to in-process models, not to reward `{self.name}`")
        return self


class RewardSettings(Section):
    mixing: Literal["sum", "normalise-then-sum"]
    on_failure: Literal["drop-group", "stop"]
    max_failed_share: Share
    retries: Annotated[int, Field(ge=0, le=100)]  # each waits longer than the one before
    deadline: Seconds
    overlap: bool
    terms: list[RewardTerm]

    @field_validator("terms")
    @classmethod
    def _names_differ(cls, terms: list[RewardTerm]) -> list[RewardTerm]:
        if not terms:
            raise ValueError("no reward is given")
        names = [term.name for term in terms]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"reward `{twice[0]}` is given twice")
        return terms
