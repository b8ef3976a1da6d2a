"""The reward server in uvicorn on loopback, with this project's client and with others."""

import asyncio
import base64
import io
import json
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from helpers.reward_scorers import Levels, image
from helpers.serving import SECONDS, body, listening, post, until
from htgrpo_ext.pixels import decode_png, encode_png
from htgrpo_ext.rewards import server
from htgrpo_ext.rewards.batching import Batcher
from htgrpo_ext.rewards.client import RewardClient, RewardFailure
from htgrpo_ext.rewards.settings import RewardTerm

LIMIT = 2**20


@contextmanager
def running(*scorers, batch_size=4, queue=2048, token=None, most_bytes=LIMIT):
    """(url, batcher) of a server around these scorers."""
    metrics = server.Metrics()
    batcher = Batcher(scorers, batch_size, wait=0.0, on_batch=metrics.on_batch, queue=queue)
    health = {"name": "levels", "rewards": list(Levels.rewards)}
    app = server.make_app(batcher, metrics, health, most_bytes, token)

    with listening(app) as url:
        try:
            yield url, batcher
        finally:
            for scorer in scorers:
                scorer.gate.set()


@pytest.fixture(scope="module")
def url():
    with running(Levels()) as (url, _):
        yield url


def held_up(pool, url, scorer):
    """A request that keeps the worker busy until `scorer.gate` is set; its score is 0."""
    scorer.gate.clear()
    first = pool.submit(post, url, body(0))
    assert scorer.entered.acquire(timeout=SECONDS)
    return first


def metrics_of(url) -> dict[str, float]:
    """Every sample by its name and labels."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


async def client_of(url) -> RewardClient:
    return RewardClient(RewardTerm(name="level", weight=1.0, url=url, timeout=SECONDS), retries=0)


def test_many_clients_share_batches_and_each_gets_its_own_scores():
    scorer = Levels()
    with running(scorer, batch_size=8) as (url, batcher):
        submitted = threading.Semaphore(0)
        submit = batcher.submit

        def counted(*arguments):
            answer = submit(*arguments)
            submitted.release()
            return answer

        batcher.submit = counted

        async def ask(level):
            files = [encode_png(image(level)), encode_png(image(level + 1))]
            return await (await client_of(url)).score([{"prompt": "a"}] * 2, files)

        with ThreadPoolExecutor(20) as pool:
            first = held_up(pool, url, scorer)
            answers = [pool.submit(asyncio.run, ask(10 * n)) for n in range(1, 13)]
            for _ in range(13):
                assert submitted.acquire(timeout=SECONDS)
            scorer.gate.set()
            assert first.result(SECONDS) == (200, {"scores": [0.0]})
            assert [a.result(SECONDS) for a in answers] == [[10.0 * n, 10.0 * n + 1] for n in range(1, 13)]
        assert [len(batch) for batch in scorer.batches] == [1, 8, 8, 8]
        samples = metrics_of(url)
    assert samples["htgrpo_reward_requests_total 200"] == 13
    assert samples["htgrpo_reward_batch_images_count"] == 4 and samples["htgrpo_reward_batch_images_sum"] == 25
    assert samples["htgrpo_reward_batch_images_bucket 4.0"] == 1
    assert samples["htgrpo_reward_waiting_images"] == 0 and samples["htgrpo_reward_request_seconds_count"] == 13


def test_a_bad_request_does_not_fail_the_others_of_its_batch():
    scorer = Levels()
    with running(scorer, batch_size=8) as (url, batcher), ThreadPoolExecutor(4) as pool:
        first = held_up(pool, url, scorer)
        answers = [pool.submit(post, url, body(5, prompt=prompt)) for prompt in ("a", "refuse", "crash")]
        until(lambda: batcher.waiting == 3)
        scorer.gate.set()
        assert [a.result(SECONDS) for a in (first, answers[0])] == [(200, {"scores": [0.0]}), (200, {"scores": [5.0]})]
        assert answers[1].result(SECONDS) == (400, {"detail": "refused"})
        assert answers[2].result(SECONDS) == (500, {"detail": "RuntimeError: crashed"})
        assert metrics_of(url)["htgrpo_reward_failed_batches_total"] == 3  # the three together, then two alone


PNG = base64.b64encode(encode_png(image(7))).decode()


def drawn(mode: str, size=(4, 4), **options) -> str:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, **{"format": "PNG"} | options)
    return base64.b64encode(buffer.getvalue()).decode()


def header_only(width: int, height: int, depth: int = 8) -> str:
    """A PNG with this size in its header and few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    lines = zlib.compress(bytes(height * (1 + width * 3 * depth // 8)) if height < 100 else bytes(9))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    return base64.b64encode(png).decode()


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        ("{", 400, "body: Invalid JSON"),
        ("[]", 400, "body: Input should be an object"),
        (b"\xff", 400, "body: Invalid JSON"),
        ("[" * 100_000, 400, "body: Invalid JSON"),
        ({"reward": "level"}, 400, "prompts: Field required"),
        (body(1, images=["%%%"]), 400, "images.0: "),
        (body(1, images=[PNG[:-9]]), 400, "images.0: "),
        (body(1, images=[drawn("RGB", format="JPEG")]), 400, "images.0: not a readable PNG"),
        (body(1, images=[drawn("RGBA")]), 400, "images.0: not a PNG of 8 bits a channel without transparency"),
        (body(1, images=[drawn("I;16")]), 400, "images.0: not a PNG of 8 bits"),
        (body(1, images=[header_only(4, 4, depth=16)]), 400, "images.0: not a PNG of 8 bits"),
        (body(1, images=[drawn("RGB", transparency=(0, 0, 0))]), 400, "images.0: not a PNG of 8 bits"),
        (body(1, images=[header_only(8193, 8193)]), 413, "more than 67108864 pixels, at image 0 of 8193 x 8193"),
        (body(1, 2, images=[PNG, header_only(8192, 8192)]), 413, "pixels, at image 1"),
        (body(1, images=[header_only(100_000, 100_000)]), 400, "images.0: not a readable PNG"),
        (body(1, images=[PNG, PNG]), 400, "1 prompts for 2 images"),
        (body(), 400, "0 prompts for 0 images"),
        (body(1, prompts=["a"]), 400, "prompts.0: Input should be an object"),
        (body(1, prompts=[{"text": "a"}]), 400, "prompts.0: no text called `prompt`"),
        (body(1, prompts=[{"prompt": 3}]), 400, "prompts.0: no text called `prompt`"),
        (body(1, reward="taste"), 400, "unknown reward `taste` (there is level, double)"),
        (body(1, prompt="refuse"), 400, "refused"),
        (body(1, prompt="nan"), 400, "image 0: its level is nan, not a finite number"),
        (body(1, prompt="crash"), 500, "RuntimeError: crashed"),
        (body(1, 2, prompt="short"), 500, "1 scores for 2 images from the scorer"),
        (body(1, prompt="other"), 500, "no list of numbers as level from the scorer"),
        (body(1) | {"id": 5}, 400, "id: Input should be a valid string"),
        (body(1) | {"id": "x" * 101}, 400, "id: String should have at most 100 characters"),
        (body(1, prompt="huge"), 400, "image 0: its level is 3e+38, not a finite number of at most 1e+15"),
        (b" " * (LIMIT + 1), 413, "more than 1 MiB"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_bad_request_gets_its_status_and_one_line(url, content, status, says):
    got, reply = post(url, content)
    assert got == status and list(reply) == ["detail"], reply
    assert reply["detail"].startswith(says) or says in reply["detail"] and status == 413
    assert "\n" not in reply["detail"]
    assert post(url, body(9)) == (200, {"scores": [9.0]})


def test_a_reply_returns_the_id_of_its_request(url):
    assert post(url, body(1) | {"id": "ä 1"}) == (200, {"id": "ä 1", "scores": [1.0]})


def test_grey_and_palette_pictures_are_scored(url):
    assert post(url, body(1, images=[drawn("L")])) == post(url, body(1, images=[drawn("P")])) == (200, {"scores": [0]})


@given(st.data())
def test_a_damaged_png_raises_value_error_only(data):
    png = bytearray(encode_png(torch.arange(192, dtype=torch.uint8).view(3, 8, 8)))
    for _ in range(data.draw(st.integers(1, 4))):
        png[data.draw(st.integers(0, len(png) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        decode_png(bytes(png[: data.draw(st.integers(0, len(png)))]))


def test_a_body_that_is_too_large_is_refused_while_it_arrives(url):
    def endless():
        while True:
            yield b" " * 65536

    with suppress(httpx.TransportError):  # the reply comes before the request ends, so it cannot always be read
        assert post(url, endless())[0] == 413
    levels = torch.randint(0, 256, (3, 1000, 1000), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    async def ask():
        await (await client_of(url)).score([{"prompt": "a"}], [encode_png(levels)])

    with pytest.raises(RewardFailure, match=r"status 413: more than 1 MiB \(--max-mib\)"):
        asyncio.run(ask())


def test_a_full_queue_gives_status_503():
    scorer = Levels()
    with running(scorer, batch_size=1, queue=2) as (url, batcher), ThreadPoolExecutor(2) as pool:
        first = held_up(pool, url, scorer)
        waiting = pool.submit(post, url, body(2, 3))
        until(lambda: batcher.waiting == 2)
        assert post(url, body(4)) == (503, {"detail": "the queue is full"})
        scorer.gate.set()
        assert first.result(SECONDS)[0] == waiting.result(SECONDS)[0] == 200
        assert post(url, body(4)) == (200, {"scores": [4.0]})


def test_a_client_that_hangs_up_is_not_scored():
    scorer = Levels()
    with running(scorer, batch_size=1) as (url, batcher), ThreadPoolExecutor(1) as pool:
        first = held_up(pool, url, scorer)
        content = json.dumps(body(2)).encode()
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            until(lambda: batcher.waiting == 1)
        until(lambda: "htgrpo_reward_requests_total 499" in metrics_of(url))
        scorer.gate.set()
        assert first.result(SECONDS)[0] == 200 and post(url, body(3)) == (200, {"scores": [3.0]})
    assert scorer.batches == [[0], [3]]


def test_requests_without_the_token_are_refused(monkeypatch):
    with running(Levels(), token="sesame") as (url, _):
        for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "sesame"}, {"Authorization": "ä"}):
            headers = {key: value.encode("latin-1") for key, value in headers.items()}
            assert post(url, body(1), **headers) == (401, {"detail": "no token, or a wrong one (HTGRPO_REWARD_TOKEN)"})
            assert httpx.get(f"{url}/health", headers=headers).status_code == 401
        assert metrics_of(url)["htgrpo_reward_requests_total 401"] == 4  # and without a token
        assert post(url, body(1), Authorization="Bearer sesame") == (200, {"scores": [1.0]})

        async def ask():
            client = await client_of(url)
            return await client.health(), await client.score([{"prompt": "a"}], [encode_png(image(3))])

        monkeypatch.setenv("HTGRPO_REWARD_TOKEN", "sesame")
        assert asyncio.run(ask()) == (None, [3.0])

        async def ask_health():
            return await (await client_of(url)).health()

        monkeypatch.setenv("HTGRPO_REWARD_TOKEN", "wrong")
        said = asyncio.run(ask_health())
        assert said == f"reward level: the server at {url} wants another token (HTGRPO_REWARD_TOKEN)"


def test_health_lists_the_rewards(url):
    assert httpx.get(f"{url}/health").json() == {"name": "levels", "rewards": ["level", "double"]}
    assert httpx.get(f"{url}/nothing").json() == {"detail": "Not Found"}
