"""The `reward` section of a run's settings. configs/model/micro.yaml says what each key means."""

import ipaddress
import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from htgrpo_ext.errors import one_line
from htgrpo_ext.rewards.registry import REWARDS, Reward
from htgrpo_ext.section import Rows, Seconds, Section, Share

Factor = Annotated[float, Field(ge=1e-6, le=1e6)]  # float32 rewards and their squares stay finite, and do not vanish
MOST_URL = 2000  # characters
LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"  # of a host name


class RewardTerm(Section):
    name: str
    weight: Factor
    scale: Factor = 1.0
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
        if self.url is not None and (fault := url_fault(self.url)):
            raise ValueError(f"url {fault} (got {one_line(repr(self.url))})")
        if self.url is None and self.protocol != "json":
            raise ValueError(f"protocol {self.protocol} needs the url of a server")
        if (self.options or self.device) and (self.in_process is None or self.in_process.world):
            raise ValueError(f"`options` and `device` apply only to in-process models, not to reward `{self.name}`")
        return self


def url_fault(url: str) -> str | None:
    """Why a text is not the url of a server, as words that follow `url`; None if it is."""
    if not re.match(r"https?://[^/]", url):
        return "must begin with http:// or https://"
    if len(url) > MOST_URL or re.search(r"[^!-~]|[@?#]", url):
        return f"must have at most {MOST_URL} characters, ASCII without spaces, `@`, `?` and `#`"
    host, port = re.fullmatch(r"(.*?)(?::(\d*))?", url.split("/")[2]).groups()  # pyright: ignore[reportOptionalMemberAccess]
    if port is not None and not 1 <= int(port or 0) <= 65535:
        return f"must have a port of 1 to 65535, not `{port}`"
    if re.fullmatch(r"\[.*\]|[\d.]+", host):
        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError as error:
            return f"has no address as its host: {error}"
    elif len(host) > 253 or "xn--" in host.lower() or not re.fullmatch(rf"{LABEL}(\.{LABEL})*\.?", host):
        return "must have the form http://HOST:PORT"
    return None


class RewardSettings(Section):
    mixing: Literal["sum", "normalise-then-sum"]
    on_failure: Literal["drop-group", "stop"]
    max_failed_share: Share
    retries: Annotated[int, Field(ge=0, le=100)]  # each waits longer than the one before
    deadline: Seconds
    overlap: bool
    terms: list[RewardTerm]

    @property
    def reads_pixels(self) -> bool:
        """Whether images are decoded for these rewards; the micro world's read codes where they run in process."""
        return any(term.in_process is None or term.in_process.world is None for term in self.terms)

    @field_validator("terms")
    @classmethod
    def _names_differ(cls, terms: list[RewardTerm]) -> list[RewardTerm]:
        if not terms:
            raise ValueError("no reward is given")
        names = [term.name for term in terms]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"reward `{twice[0]}` is given twice")
        return terms
