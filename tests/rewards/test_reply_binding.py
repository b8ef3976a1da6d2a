"""A reply is used for its own request only, and only if nothing about it is odd: no wrong score, no endless reply."""

import gzip
import json
import math
import pickle
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from helpers.judging import BRIGHT, Clock, judge, kept, rewards
from helpers.raw_server import id_of, raw_server, reply
from helpers.reward_stub import good, server
from htgrpo_ext.rewards import wire


def scores_of(body: bytes, *scores: float) -> bytes:
    """A right reply to a request of our protocol or, if it has no id, by pickle."""
    content = {"id": id_of(body), "scores": list(scores)}
    return json.dumps(content).encode() if content["id"] else pickle.dumps({"scores": list(scores)})


@pytest.mark.parametrize("protocol", ["json", "reward-server-pickle"])
def test_a_surplus_reply_does_not_answer_the_next_request(protocol):
    """The server sends a second reply after each one, in the same packet, and keeps the connection."""

    def answer(head: bytes, body: bytes) -> bytes:
        right = reply(scores_of(body, 1.0, 2.0, 3.0, 4.0))
        return right + reply(scores_of(body, 99.0, 99.0, 99.0, 99.0))

    with raw_server(answer) as url:
        found = rewards(url, protocol=protocol, batch_size=4)
        for _ in range(3):
            assert judge(found).reward_B.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_the_reply_to_another_request_is_discarded_and_the_request_retried():
    def answer(request, n):
        return (200, b'{"id": "another", "scores": [99.0, 99.0, 99.0, 99.0]}') if n < 2 else good(request, n)

    with server(answer) as (url, seen):
        assert judge(rewards(url, batch_size=4)).reward_B.tolist() == BRIGHT and len(seen) == 3
    assert len({request["id"] for request in seen}) == 1
    with server(lambda *_: (200, b'{"id": "another", "scores": [99.0, 99.0, 99.0, 99.0]}')) as (url, _):
        judged = judge(rewards(url, batch_size=4))
    assert not judged.any_kept and "the reply to another request" in judged.metrics["failure"]


@pytest.mark.parametrize("body", [b'{ "scores": [99.0, 99.0]}', b'{"id": null, "scores": [99.0, 99.0]}'])
def test_a_reply_without_the_id_is_refused_at_once(body):
    with server(lambda *_: (200, body)) as (url, seen):
        judged = judge(rewards(url))
    assert not judged.any_kept and len(seen) == 2  # one per group
    assert "a reply without the request's `id`" in judged.metrics["failure"]


@pytest.mark.parametrize("score", ["3e38", "-3e38", "1.1e15", "1" + 400 * "0"])
def test_scores_that_would_overflow_float32_are_refused(score):
    def answer(request, n):
        scored = f'{{"scores": [{score}, 1.0]}}'.encode()
        return (200, scored) if request["prompts"][0]["prompt"] == "p0" else good(request, n)

    with server(answer) as (url, _):
        judged = judge(rewards(url))
    assert kept(judged) == [False, False, True, True] and "not a finite number of at most" in judged.metrics["failure"]
    assert all(math.isfinite(judged.metrics[key]) for key in ("reward_mean", "reward_std", "stub_mean", "stub_std"))


def test_the_largest_scores_give_finite_metrics():
    def answer(request, n):
        return (200, b'{"scores": [1e15, -1e15]}')

    with server(answer) as (url, _):
        metrics = judge(rewards(url)).metrics
    assert metrics["reward_mean"] == 0 and metrics["reward_std"] == pytest.approx(1e15 * math.sqrt(4 / 3))


def test_a_score_that_overflows_with_its_weight_is_lost():
    term = {"name": "stub", "weight": 1e6, "scale": 1e6, "batch_size": 2}
    with server(lambda *_: (200, b'{"scores": [1e14, 1.0]}')) as (url, _):
        judged = judge(rewards(url, terms=[term | {"url": url}]))
    assert not judged.any_kept and judged.metrics["failure"] == "a score is too large with its weight"


def test_a_compressed_reply_is_refused_unread():
    seen = []

    def answer(head: bytes, body: bytes) -> bytes:
        seen.append(head.lower())
        return reply(gzip.compress(scores_of(body, 1.0, 2.0, 3.0, 4.0)), "Content-Encoding: gzip")

    with raw_server(answer) as url:
        judged = judge(rewards(url, batch_size=4))
    assert "a reply in the content encoding gzip, which was not asked for" in judged.metrics["failure"]
    assert len(seen) == 1 and b"accept-encoding: identity" in seen[0]


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
def test_an_endless_reply_is_cut_off(status, monkeypatch):
    monkeypatch.setattr(wire, "LARGEST_REPLY", 1000)
    endless = b"10\r\n" + b"x" * 16 + b"\r\n"
    head = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with raw_server(lambda *_: head + endless * 1000) as url:
        judged = judge(rewards(url, batch_size=4))
    assert ("a reply of more than 1000 bytes" if "200" in status else "status 400") in judged.metrics["failure"]


def test_a_request_for_patience_is_kept():
    """Retry-After in seconds, as a date, and in a form that cannot be read."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=15), usegmt=True)
    for value, at_least, at_most in (("7", 7, 7), (later, 10, 15), ("soon", 0.25, 0.5), ("-3", 0.25, 0.5)):
        for status in (429, 503):
            clock = Clock()
            busy = (status, b"", {"Retry-After": value})
            with server(lambda request, n, busy=busy: good(request, n) if n else busy) as (url, seen):
                assert judge(rewards(url, clock, batch_size=4)).reward_B.tolist() == BRIGHT
            assert len(seen) == 2 and at_least <= clock.waits[0] <= at_most


def test_a_wait_past_the_deadline_is_a_failure_at_once():
    start = time.monotonic()
    with server(lambda *_: (429, b"", {"Retry-After": "3600"})) as (url, seen):
        judged = judge(rewards(url, batch_size=4))
    assert time.monotonic() - start < 10 and len(seen) == 1
    assert "status 429; the server asks to wait 3600 s, which is past the deadline" in judged.metrics["failure"]


@pytest.mark.parametrize("detail", [b"x" * 5000, b"\x1b[31mred\x07\xe2\x80\xaegnp\n\n\x00", b"[" * 100_000])
def test_a_servers_words_are_cut_and_cleaned(detail):
    body = detail if detail.startswith(b"[") else json.dumps({"detail": detail.decode()}).encode()
    with server(lambda *_: (400, body)) as (url, _):
        said = judge(rewards(url, batch_size=4)).metrics["failure"]
    assert said.isprintable() and len(said) < 300
