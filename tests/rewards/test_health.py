"""What a run learns from /health before it starts: one clean line for every reply that will not do."""

import asyncio
import gzip
import json

import pytest

from helpers.raw_server import raw_server, reply
from htgrpo_ext.rewards import wire
from htgrpo_ext.rewards.client import RewardClient
from htgrpo_ext.rewards.settings import RewardTerm


def health(url: str, protocol: str = "json") -> str | None:
    async def ask():
        return await RewardClient(RewardTerm(name="stub", weight=1.0, url=url, protocol=protocol), retries=0).health()

    return asyncio.run(ask())


def rewards(value) -> bytes:
    return json.dumps({"rewards": value}).encode()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (rewards(["other", "stub"]), None),
        (rewards(5), "does not speak this protocol"),
        (rewards("stub"), "does not speak this protocol"),
        (rewards("stubborn"), "does not speak this protocol"),
        (rewards({"stub": 1}), "does not speak this protocol"),
        (rewards([["stub"]]), "does not speak this protocol"),
        (rewards(["stubborn"]), "has stubborn"),
        (rewards([]), "has "),
        (rewards(["x" * 5000]), "has xxx"),
        (rewards(["\x1b[31mred\u202e\n"]), r"has \x1b[31mred\u202e\n"),
        (b'{"rewards": ' + b"[" * 100_000, "does not speak this protocol"),
        (b"[]", "does not speak this protocol"),
        (b"\xff", "does not speak this protocol"),
        (b"<html>", "does not speak this protocol"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_reply_is_understood_or_refused_in_one_clean_line(body, says):
    with raw_server(lambda *_: reply(body)) as url:
        said = health(url)
    if says is None:
        assert said is None
    else:
        assert said is not None and says in said and said.startswith("reward stub: ")
        assert said.isprintable() and len(said) < 400


def test_compressed_and_endless_replies_are_refused(monkeypatch):
    monkeypatch.setattr(wire, "LARGEST_REPLY", 1000)
    packed = reply(gzip.compress(rewards(["stub"])), "Content-Encoding: gzip")
    for raw, says in ((packed, "content encoding gzip"), (reply(b" " * 2000), "more than 1000 bytes")):
        with raw_server(lambda *_, raw=raw: raw) as url:
            assert says in (health(url) or "")


@pytest.mark.parametrize("protocol", ["json", "reward-server-pickle"])
def test_a_tls_error_is_said_as_such(protocol):
    """The server speaks plain HTTP, the url says https."""
    with raw_server(lambda *_: reply(b"")) as url:
        said = health(url.replace("http://", "https://"), protocol)
    assert said is not None and said.startswith("reward stub: TLS to https://127.0.0.1:") and "http or https" in said


def test_a_server_of_another_protocol_is_said_as_such():
    """As from a TLS server that is asked in plain HTTP."""
    with raw_server(lambda *_: b"\x15\x03\x03\x00\x02\x02\x46") as url:
        assert "does not speak HTTP" in (health(url) or "")
