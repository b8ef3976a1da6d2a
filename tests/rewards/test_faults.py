"""Everything a reward server can do wrong, on loopback: no wrong score, no hang, the run goes on or stops as set."""

import asyncio
import io
import os
import pickle
import subprocess
import threading
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from helpers.reward_stub import good, held, seconds_since, server
from htgrpo_ext.errors import UserError
from htgrpo_ext.rewards import mix, pickled
from htgrpo_ext.rewards.settings import RewardSettings

G = 2
PROMPTS = [{"prompt": f"p{b // G}"} for b in range(4)]
CODES = torch.zeros(4, 64, dtype=torch.int64)
SHADES = torch.tensor([0.0, 0.2, 0.9, -0.4])  # an image each
BRIGHT = [128.0, 153.0, 242.0, 76.0]  # their levels, by hand: round((x + 1) * 127.5)


def images() -> torch.Tensor:
    return SHADES[:, None, None, None].expand(4, 3, 8, 8)


class Clock:
    """Waits no time, and remembers how long it was asked to."""

    def __init__(self):
        self.waits = []

    async def __call__(self, seconds):
        self.waits.append(seconds)
        await asyncio.sleep(0)


def rewards(url, clock=None, **changes):
    term = {"name": "stub", "weight": 1.0, "url": url, "batch_size": 2, "timeout": 5.0}
    term |= {key: changes.pop(key) for key in ("batch_size", "timeout", "protocol") if key in changes}
    settings = {"mixing": "sum", "on_failure": "drop-group", "max_failed_share": 1.0, "retries": 2, "deadline": 20.0}
    settings |= {"overlap": True, "terms": [term], **changes}
    return mix.Rewards(RewardSettings(**settings), Accelerator(), G, clock or Clock())


def judge(found):
    return found.score(PROMPTS, CODES, images)


def kept(judged):
    return judged.kept_B.tolist()


def test_every_image_gets_its_own_score_and_the_pixels_arrive_exactly():
    with server() as (url, seen):
        judged = judge(rewards(url))
    assert judged.reward_B.tolist() == BRIGHT and kept(judged) == [True] * 4
    assert sorted(r["prompts"][0]["prompt"] for r in seen) == ["p0", "p1"] and seen[0]["reward"] == "stub"
    assert judged.metrics["stub_mean"] == pytest.approx(sum(BRIGHT) / 4) and judged.metrics["failed_groups"] == 0


def test_what_passes_is_tried_again_with_growing_waits():
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
        ((200, b'{"scores": [1.0, NaN]}'), 1, "score 1 is nan, no finite number"),
        ((200, b'{"scores": [1.0, null]}'), 1, "score 1 is None, no finite number"),
        ((200, b'{"scores": [Infinity, 1]}'), 1, "score 0 is inf, no finite number"),
        ((200, b'{"scores": [true, "2"]}'), 1, "score 0 is True, no finite number"),
        ((200, b'{"scores": [1e300, 1]}'), 1, "a score is no finite number"),
        ((200, b'{"scores": [1.0, '), 1, "a reply that cannot be read"),
        ((200, b"\xff\x00garbage"), 1, "a reply that cannot be read"),
        ((200, b"[" * 100_000), 1, "a reply that cannot be read"),
        ((200, b"{}"), 1, "a reply that cannot be read"),
    ],
)
def test_a_failure_for_good_drops_its_group_and_no_other(bad, tries, says):
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


def test_a_group_that_two_requests_share_is_lost_whole():
    with server(lambda request, n: (400, b"") if len(request["images"]) == 1 else good(request, n)) as (url, _):
        assert kept(judge(rewards(url, batch_size=3))) == [True, True, False, False]


def test_a_slow_server_costs_no_more_than_the_deadline():
    event, start = threading.Event(), time.monotonic()
    with server(held(event)) as (url, _):
        judged = judge(rewards(url, deadline=0.3, timeout=30.0))
        assert seconds_since(start) < 3 and not judged.any_kept
        assert "no answer by the deadline of 0.3 s" in judged.metrics["failure"]
        assert judged.metrics["reward_mean"] is None
        judged = judge(rewards(url, timeout=0.1))
        assert "no answer within 0.1 s, in 3 tries" in judged.metrics["failure"]
        event.set()


def test_a_server_restarted_in_the_middle_is_waited_for():
    class Restart(Clock):
        """Starts the server while the client waits."""

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


def test_a_server_that_is_down_or_another_is_said_before_anything_starts():
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


def test_stop_stops_and_drop_group_stops_when_too_many_batches_failed():
    with server(lambda *_: (400, b'{"detail": "no"}')) as (url, _):
        with pytest.raises(UserError, match=r"status 400: no .*; reward.on_failure is stop"):
            judge(rewards(url, on_failure="stop"))
        found = rewards(url, max_failed_share=0.04)  # two of fifty may fail
        judge(found), judge(found)
        with pytest.raises(UserError, match="3 of the last 3 rollout batches lost a group"):
            judge(found)


def test_failures_that_are_long_past_do_not_count():
    failing = {0, 1, 51, 52}
    with server(lambda request, n: (400, b"") if n in failing else good(request, n)) as (url, _):
        found = rewards(url, max_failed_share=0.04, batch_size=4)
        assert [judge(found).any_kept for _ in range(53)].count(False) == 4


def test_the_token_goes_along(monkeypatch):
    monkeypatch.setenv("HTGRPO_REWARD_TOKEN", "secret")
    with server() as (url, seen):
        judge(rewards(url))
    assert seen[0]["headers"]["Authorization"] == "Bearer secret"


# --- pickles --------------------------------------------------------------------------------------------------


def by_pickle(value) -> list[float] | str:
    """What the reward of four images is when the server's reply is the pickle `value`, or how it failed."""
    reply = value if isinstance(value, bytes) else pickle.dumps(value)
    with server(lambda *_: (200, reply)) as (url, seen):
        judged = judge(rewards(url, protocol="reward-server-pickle", batch_size=4))
    assert seen[0]["prompts"] == ["p0", "p0", "p1", "p1"] and seen[0]["meta_datas"] == PROMPTS
    return judged.reward_B.tolist() if judged.any_kept else judged.metrics["failure"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "scores",
    [
        [1.0, 2.5, -3.0, 4.0],
        np.array([1.0, 2.5, -3.0, 4.0]),
        np.array([1.0, 2.5, -3.0, 4.0], dtype=">f4"),
        [np.float32(1.0), np.float64(2.5), np.int64(-3), np.float16(4.0)],
    ],
    ids=["list", "float64", "big-endian", "scalars"],
)
def test_numbers_and_arrays_are_read_from_every_kind_of_pickle(scores, protocol):
    expected = [float(score) for score in scores]
    assert pickled.loads(pickle.dumps({"scores": scores}, protocol))["scores"] == expected


def test_arrays_keep_their_shape():
    table = np.arange(6, dtype=np.int32).reshape(2, 3)
    for array in (table, np.asfortranarray(table)):
        assert pickled.loads(pickle.dumps(array)) == [[0, 1, 2], [3, 4, 5]]


def test_a_server_of_the_old_kind_is_understood():
    assert by_pickle({"scores": np.array([1.0, 2.0, 3.0, 5.0]), "group_rewards": {"a": [0.5]}}) == [1, 2, 3, 5]
    assert by_pickle({"scores": [1, 2, 3, 5]}) == [1, 2, 3, 5]


class Calls:
    def __init__(self, function, *arguments):
        self.recipe = function, arguments

    def __reduce__(self):
        return self.recipe


def test_a_pickle_that_would_execute_code_executes_nothing(tmp_path):
    mark = tmp_path / "executed"
    attacks = [
        pickle.dumps({"scores": [1, 2, 3, 4], "x": Calls(os.system, f"touch {mark}")}),
        pickle.dumps(Calls(eval, f"open({str(mark)!r}, 'w')")),
        pickle.dumps(Calls(subprocess.check_call, ["touch", str(mark)])),
        pickle.dumps(Calls(getattr, "text", "upper")),
        b"cnumpy.core.multiarray\n_reconstruct\n}(X\x08\x00\x00\x00__func__K\x01u\x86b.",  # alter the reader itself
        pickle.dumps(np.array([1, "a"], dtype=object)),
        pickle.dumps(np.zeros(2, dtype=[("a", "f4")])),
        b"\x80\x04P1\n.",
    ]
    for attack in attacks:
        assert "a reply that cannot be read: Refused" in by_pickle(attack)
        assert not mark.exists()
    with pytest.raises(pickled.Refused, match="names posix.system"):
        pickled.loads(attacks[0])
    pickle.loads(attacks[0])
    assert mark.exists()  # the attack is one


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps([1.0] * 100)[:-7], b"(" * 10])
def test_garbage_is_refused(data):
    with pytest.raises(pickled.Refused):
        pickled.loads(data)


def test_an_array_that_lies_about_its_size_is_refused():
    buffer = io.BytesIO(pickle.dumps(np.zeros(3)).replace(b"K\x03\x85", b"K\x64\x85"))
    with pytest.raises(pickled.Refused, match="shape"):
        pickled.loads(buffer.getvalue())
