"""Requests that are half sent do not stay: the server bounds their time and their number."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from helpers.reward_scorers import Levels
from helpers.serving import SECONDS, body, listening, post, until
from htgrpo_ext.rewards import connections, server
from htgrpo_ext.rewards.batching import Batcher

HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
BODY = json.dumps(body(7)).encode()


@contextmanager
def running(token=None):
    """The url of a server with one worker."""
    metrics = server.Metrics()
    batcher = Batcher([Levels()], batch_size=4, wait=0.0)
    app = server.make_app(batcher, metrics, {"rewards": ["level"]}, 2**20, token)
    with listening(app) as url:
        yield url


def connect(url: str, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), SECONDS)
    connection.sendall(sent)
    return connection


def rest_of(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize("sent", [b"", b"POST /sc", HEAD], ids=["nothing", "a line", "headers"])
def test_headers_that_do_not_end_are_cut_off(sent, monkeypatch):
    monkeypatch.setattr(connections, "STALL", 0.2)
    with running() as url, connect(url, sent) as connection:
        assert rest_of(connection) == b""
        assert post(url, body(7)) == (200, {"scores": [7.0]})


def test_the_next_request_of_a_connection_is_bounded_too(monkeypatch):
    monkeypatch.setattr(connections, "STALL", 0.2)
    whole = HEAD.replace(b"1000", str(len(BODY)).encode()) + b"\r\n" + BODY
    with running() as url, connect(url, whole) as connection:
        reply = b""
        while not reply.endswith(b'{"scores":[7.0]}'):
            reply += connection.recv(65536)
        connection.sendall(b"POST /sc")
        assert rest_of(connection) == b""


@pytest.mark.parametrize("path", [b"/score", b"/nothing"])
def test_the_rest_of_a_refused_request_is_not_waited_for(path, monkeypatch):
    monkeypatch.setattr(connections, "STALL", 0.2)
    with running(token="sesame") as url, connect(url, HEAD.replace(b"/score", path) + b"\r\n{") as connection:
        reply = rest_of(connection)
    assert reply.startswith(b"HTTP/1.1 401" if path == b"/score" else b"HTTP/1.1 404") and reply.count(b"HTTP") == 1


def test_a_body_that_stops_gets_status_408(monkeypatch):
    monkeypatch.setattr(connections, "STALL", 0.2)
    with running() as url, connect(url, HEAD + b"\r\n{") as connection:
        reply = rest_of(connection)
    assert reply.startswith(b"HTTP/1.1 408") and reply.endswith(b'{"detail":"the body paused for 0.2 s or took 120 s"}')


def test_a_body_that_trickles_gets_status_408(monkeypatch):
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.4)
    with running() as url, connect(url, HEAD + b"\r\n") as connection:
        connection.settimeout(0.01)
        reply = b""
        for _ in range(900):
            try:
                connection.sendall(b" ")
                reply += connection.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if b"\r\n\r\n" in reply:
                break
    assert reply.startswith(b"HTTP/1.1 408")


def test_only_so_many_requests_may_have_incomplete_headers(monkeypatch):
    monkeypatch.setattr(connections, "MOST_HALF_SENT", 3)
    with running() as url, ExitStack() as stack:
        held = [stack.enter_context(connect(url, b"POST /sc")) for _ in range(3)]
        until(lambda: len(connections.Connection.waiting) == 3)
        with connect(url, b"") as fourth:
            assert rest_of(fourth) == b""
        held[0].close()
        until(lambda: len(connections.Connection.waiting) == 2)
        assert post(url, body(7)) == (200, {"scores": [7.0]})


def test_only_so_many_bodies_are_read_at_a_time_and_a_request_waits_its_turn(monkeypatch):
    monkeypatch.setattr(connections, "RECEIVING", 2)
    with running() as url, ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        held = [stack.enter_context(connect(url, HEAD + b"Expect: 100-continue\r\n\r\n")) for _ in range(2)]
        assert [each.recv(100)[:12] for each in held] == [b"HTTP/1.1 100"] * 2  # both are being read
        waiting = pool.submit(post, url, body(7))
        with connect(url, HEAD + b"Expect: 100-continue\r\n\r\n") as third:
            third.settimeout(0.3)
            with pytest.raises(TimeoutError):
                third.recv(100)
        assert not waiting.done()
        held[0].close()
        assert waiting.result(SECONDS) == (200, {"scores": [7.0]})


def test_too_many_half_sent_bodies_get_status_503(monkeypatch):
    monkeypatch.setattr(connections, "MOST_HALF_SENT", 2)
    with running() as url, ExitStack() as stack:
        for _ in range(2):
            held = stack.enter_context(connect(url, HEAD + b"Expect: 100-continue\r\n\r\n"))
            assert held.recv(100).startswith(b"HTTP/1.1 100")
        assert post(url, body(7)) == (503, {"detail": "2 requests are being sent already"})


def test_a_hundred_and_fifty_half_sent_requests_end_and_a_whole_one_is_scored(monkeypatch):
    monkeypatch.setattr(connections, "STALL", 0.3)
    with running() as url, ExitStack() as stack:
        held = [stack.enter_context(connect(url, HEAD + b"\r\n{")) for _ in range(150)]
        assert post(url, body(7)) == (200, {"scores": [7.0]})
        assert all(rest_of(each).startswith(b"HTTP/1.1 408") for each in held)
