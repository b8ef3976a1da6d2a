"""The settings of a reward: its url and its weight."""

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from htgrpo_ext.rewards.settings import RewardTerm, url_fault


def fault(**changes) -> str:
    """The complaint about a term, one line."""
    with pytest.raises(ValidationError) as caught:
        RewardTerm(**{"name": "stub", "weight": 1.0, "url": "http://127.0.0.1:1"} | changes)
    (error,) = caught.value.errors()
    assert "\n" not in error["msg"]
    return error["msg"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("host:80", "must begin with http://"),
        ("http:///path", "must begin with http://"),
        ("http://host:99999999", "must have a port of 1 to 65535, not `99999999`"),
        ("http://host:0", "must have a port of 1 to 65535"),
        ("http://host:8a", "must have the form http://HOST:PORT"),
        ("http://[::1", "must have the form http://HOST:PORT"),
        ("http://[::g]:80", "has no address as its host"),
        ("http://1.2.3.256", "has no address as its host"),
        ("http://a..b", "must have the form http://HOST:PORT"),
        ("http://" + "a" * 64, "must have the form http://HOST:PORT"),
        ("http://ho st", "must have at most 2000 characters, ASCII"),
        ("http://host/\x1b[31m", "must have at most 2000 characters, ASCII"),
        ("http://user:secret@host", "without spaces, `@`"),
        ("http://host/" + "x" * 5000, "must have at most 2000 characters"),
    ],
)
def test_a_url_that_cannot_be_asked_is_one_line(url, says):
    said = fault(url=url)
    assert says in said and len(said) < 500 and said.isprintable()


@given(st.one_of(st.text(), st.from_regex(r"https?://[\[\]0-9a-zA-Z:._@%/#?-]{1,30}", fullmatch=True)))
@example("http://xn--a:1")
@example("http://[v1.a]")
def test_every_accepted_url_can_be_requested(text):
    if url_fault(text) is None:
        url = httpx.Request("GET", f"{text.rstrip('/')}/health").url
        assert url.host and url.path.endswith("/health")


@pytest.mark.parametrize("key", ["weight", "scale"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300, 1e7, 0, -1, 1e-50])
def test_a_factor_that_float32_cannot_hold_is_refused(key, value):
    assert fault(**{key: value}).endswith(("equal to 0.000001", "equal to 1000000", "a finite number"))
