"""Replies of pickle servers: numbers and arrays are read, and nothing is executed."""

import io
import os
import pickle
import subprocess

import numpy as np
import pytest

from helpers.judging import PROMPTS, judge, rewards
from helpers.reward_stub import server
from htgrpo_ext.rewards import pickled


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


def test_replies_of_a_pickle_server_are_read():
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
def test_a_broken_pickle_is_refused(data):
    with pytest.raises(pickled.Refused):
        pickled.loads(data)


def test_a_small_pickle_of_a_huge_value_is_refused():
    """Each list holds the one before it ten times: 300 bytes of pickle stand for 10^40 values."""
    nested: list = [1.0]
    for _ in range(40):
        nested = [nested] * 10
    data = pickle.dumps(nested)
    assert len(data) < 2000
    with pytest.raises(pickled.Refused, match="more than 1048576 values"):
        pickled.loads(data)


def test_an_array_with_a_wrong_shape_is_refused():
    buffer = io.BytesIO(pickle.dumps(np.zeros(3)).replace(b"K\x03\x85", b"K\x64\x85"))
    with pytest.raises(pickled.Refused, match="shape"):
        pickled.loads(buffer.getvalue())
