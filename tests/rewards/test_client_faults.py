"""Faults of a reward server, on loopback: no wrong score and no hang, and the run goes on or stops as set."""

import threading
import time

import pytest

from helpers.judging import BRIGHT, Clock, judge, kept, rewards
from helpers.reward_stub import good, held, seconds_since, server
from htgrpo_ext.errors import UserError


def test_every_image_gets_its_own_score_and_the_pixels_arrive_exactly():
    with server() as (url, seen):
        judged = judge(rewards(url))
    assert judged.reward_B.tolist() == BRIGHT and kept(judged) == [True] * 4
    assert sorted(r["prompts"][0]["prompt"] for r in seen) == ["p0", "p1"] and seen[0]["reward"] == "stub"
    assert judged.metrics["stub_mean"] == pytest.approx(sum(BRIGHT) / 4) and judged.metrics["failed_groups"] == 0


def test_transient_errors_are_retried_with_growing_waits():
    for bad in ((500, b""), (503, b"busy"), None):
        clock = Clock()
        with server(lambda request, n, bad=bad: bad if n < 2 else good(request, n)) as (url, seen):
            judged = judge(rewards(url, clock, batch_size=4))
        assert judged.reward_B.tolist() == BRIGHT and len(seen) == 3
        assert 0.25 <= clock.waits[0] <= 0.5 <= clock.waits[1] <= 1.0


@pytest.mark.parametrize(
    ("bad", "tries", "says"),
    [
        ((500, b'{"detail": "out of\\nmemory"}'), 3, "status 500: out of memory, in 3 tries"),
        ((400, b'{"detail": "bad image"}'), 1, "status 400: bad image"),
        ((302, b""), 1, "status 302"),
        (None, 3, "RemoteProtocolError"),
        ((200, b'{"scores": [1.0]}'), 1, "1 scores for 2 images"),
        ((200, b'{"scores": [1, 2, 3]}'), 1, "3 scores for 2 images"),
        ((200, b'{"scores": 7}'), 1, "a int scores for 2 images"),
        ((200, b'{"scores": [1.0, NaN]}'), 1, "score 1 is nan, not a finite number"),
        ((200, b'{"scores": [1.0, null]}'), 1, "score 1 is None, not a number"),
        ((200, b'{"scores": [Infinity, 1]}'), 1, "score 0 is inf, not a finite number"),
        ((200, b'{"scores": [true, "2"]}'), 1, "score 0 is True, not a number"),
        ((200, b'{"scores": [1e300, 1]}'), 1, "score 0 is 1e+300, not a finite number of at most 1e+15 in size"),
        ((200, b'{"scores": [1.0, '), 1, "a reply that cannot be read"),
        ((200, b"\xff\x00garbage"), 1, "a reply that cannot be read"),
        ((200, b"[" * 100_000), 1, "a reply that cannot be read"),
        ((200, b"{}"), 1, "a reply that cannot be read"),
    ],
)
def test_a_failed_request_drops_its_group_and_no_other(bad, tries, says):
    def answer(request, n):
        return bad if request["prompts"][0]["prompt"] == "p0" else good(request, n)

    with server(answer) as (url, seen):
        judged = judge(rewards(url))
    assert kept(judged) == [False, False, True, True]
    assert judged.reward_B.tolist() == [0.0, 0.0, *BRIGHT[2:]]
    assert judged.advantage_B[:2].tolist() == [0.0, 0.0] and judged.advantage_B[2] > 0 > judged.advantage_B[3]
    assert len([r for r in seen if r["prompts"][0]["prompt"] == "p0"]) == tries
    assert says in judged.metrics["failure"] and judged.metrics["failed_groups"] == 1
    assert judged.metrics["reward_mean"] == pytest.approx(sum(BRIGHT[2:]) / 2)


def test_a_group_split_over_two_requests_is_dropped_whole():
    with server(lambda request, n: (400, b"") if len(request["images"]) == 1 else good(request, n)) as (url, _):
        assert kept(judge(rewards(url, batch_size=3))) == [True, True, False, False]


def test_a_slow_server_takes_no_longer_than_the_deadline():
    event, start = threading.Event(), time.monotonic()
    with server(held(event)) as (url, _):
        judged = judge(rewards(url, deadline=0.3, timeout=30.0))
        assert seconds_since(start) < 3 and not judged.any_kept
        assert "no answer by the deadline of 0.3 s" in judged.metrics["failure"]
        assert judged.metrics["reward_mean"] is None
        judged = judge(rewards(url, timeout=0.1))
        assert "no answer within 0.1 s, in 3 tries" in judged.metrics["failure"]
        event.set()


def test_a_restarted_server_gets_the_request_again():
    class Restart(Clock):
        """Starts the server again while the client waits."""

        def __init__(self, port):
            super().__init__()
            self.port, self.context = port, None

        async def __call__(self, seconds):
            if self.context is None:
                self.context = server(port=self.port)
                self.context.__enter__()

    with server() as (url, _):
        found = rewards(url, batch_size=4)
        assert judge(found).any_kept
    restart = Restart(int(url.rpartition(":")[2]))
    found._clients["stub"].sleep = restart
    judged = judge(found)
    restart.context.__exit__(None, None, None)
    assert judged.reward_B.tolist() == BRIGHT


def test_a_server_that_is_down_or_lacks_the_reward_is_reported_at_the_start():
    with server(names=("clip", "geneval")) as (url, _), pytest.raises(UserError) as caught:
        rewards(url).start()
    assert str(caught.value) == f"reward stub: the server at {url} has clip, geneval"
    for protocol in ("json", "reward-server-pickle"):
        with pytest.raises(UserError) as caught:
            rewards(url, protocol=protocol).start()
        line = f"reward stub: no server answers at {url}"
        assert str(caught.value) == line
    with server() as (url, _):
        rewards(url).start()
        rewards(url, protocol="reward-server-pickle").start()


def test_a_run_stops_at_the_first_failure_or_after_too_many_as_set():
    with server(lambda *_: (400, b'{"detail": "no"}')) as (url, _):
        with pytest.raises(UserError, match=r"status 400: no .* \(reward.on_failure is stop\)"):
            judge(rewards(url, on_failure="stop"))
        found = rewards(url, max_failed_share=0.04)  # two of fifty may fail
        judge(found), judge(found)
        with pytest.raises(UserError, match="3 of the last 3 rollout batches lost a group"):
            judge(found)


def test_failures_older_than_the_window_do_not_count():
    failing = {0, 1, 51, 52}
    with server(lambda request, n: (400, b"") if n in failing else good(request, n)) as (url, _):
        found = rewards(url, max_failed_share=0.04, batch_size=4)
        assert [judge(found).any_kept for _ in range(53)].count(False) == 4


def test_requests_carry_the_token(monkeypatch):
    monkeypatch.setenv("HTGRPO_REWARD_TOKEN", "secret")
    with server() as (url, seen):
        judge(rewards(url))
    assert seen[0]["headers"]["Authorization"] == "Bearer secret"
