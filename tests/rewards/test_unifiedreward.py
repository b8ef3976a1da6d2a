"""UnifiedReward: its published prompt, its strict reading of scores, and the model behind an endpoint."""

import json
import math
import subprocess
import sys
import threading

import httpx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.endpoint_stub import MODEL, endpoint, saying
from helpers.raw_server import raw_server, reply
from htgrpo_ext.core.randomness import derived_generator
from htgrpo_ext.errors import UserError
from htgrpo_ext.rewards.batching import Batcher, ScorerFailed
from htgrpo_ext.rewards.published import published_prompt
from htgrpo_ext.rewards.scorers import check_options
from htgrpo_ext.rewards.scorers.unifiedreward import KEY, Scorer, read_prompt, read_score

SECONDS = 30  # against hangs
CPU = torch.device("cpu")
PROMPT = "Rate {it} after 'Final Score:'.\nCaption: [{caption}] %s"  # with braces and signs that are no placeholders

FILE = r"""
import no_such_package
pattern = r"Final Score:\s*"
def main(prompt, other):
    a = f"Caption {prompt}, and no score"
    b = f"{prompt} and {other}: Final Score:"
    c = "Final Score: {prompt}"
    return [{"text": f'Look. It\'s {{so}}\n"Final Score:"' + "" f' for [{prompt}]'}, a, b, c]
    question = 'no' + f'Grade it "Final Score:" {{x}}, it\'s\tset.\nText: [{prompt}] é'
"""


def test_the_published_prompt_is_the_one_fstring_that_asks_for_a_score():
    assert published_prompt(FILE) == 'Grade it "Final Score:" {x}, it\'s\tset.\nText: [{caption}] é'


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.text(alphabet="ab{}'\"\\\n[]%$")


@given(TEXT, TEXT)
def test_any_published_prompt_is_read_as_python_reads_it(before, after):
    """Python's own f-string is the oracle."""
    first, last = (repr(text.replace("{", "{{").replace("}", "}}")) for text in (before, after))
    source = f"question = f{first} f'[{{prompt}}]' f{last} ' Final Score:'"
    names = {"prompt": "{caption}"}
    exec(source, names)
    assert published_prompt(source) == names["question"]


@pytest.mark.parametrize(
    "source",
    ["", "a = 'Final Score: {prompt}'", "a = f'{prompt}'", "a = f'{x} {y} Final Score:'"]
    + ["a = f'{prompt} Final Score: 1'\nb = f'{prompt} Final Score: 2'", "a = f'{{caption}} {prompt} Final Score:'"],
)
def test_a_source_without_exactly_one_prompt_is_refused(source):
    with pytest.raises(ValueError, match="f-strings"):
        published_prompt(source)


def test_the_command_writes_the_prompt_that_the_scorer_reads(tmp_path):
    source, target = tmp_path / "published.py", tmp_path / "prompt.txt"
    source.write_text("q = f'Look:\\n[{prompt}]\\nFinal Score: é'", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "htgrpo_ext.rewards.published", source, target], check=True)
    assert read_prompt(target) == ("Look:\n[", "]\nFinal Score: é")


@pytest.mark.parametrize(
    "text",
    [None, b"\xff", b"Final Score:", b"{caption}", b"{caption} {caption} Final Score:", b"{prompt} Final Score:"],
)
def test_an_unsuitable_prompt_file_is_one_line(tmp_path, text):
    file = tmp_path / "prompt.txt"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(UserError, match="option `prompt_file`") as raised:
        read_prompt(file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Final Score: 4", 4.0),
        ("Final Score:3.5", 3.5),
        ("Final Score: 1", 1.0),
        ("Final Score: 5.0\n", 5.0),
        ("cat (animal): 1\nred (colour): 0\nFinal Score: 2.625", 2.625),
        ("  a dog: 1, Final Score:\n 4.75 \n", 4.75),
    ],
)
def test_a_score_in_the_published_form_is_read(answer, score):
    assert read_score(answer) == score


@pytest.mark.parametrize(
    "said",
    ["", " ", " four", " 4.", " .5", " 4,5", " 4/5", " 4 out of 5", " 0", " 0.9", " 5.01", " 6", " 10", " 45", " -4"]
    + [" +4", " 4e0", " 1_0", " 04", " ٤", " nan", " inf", " 3-4", " 3 4", " 4.2.1", " [4]", " '4'", " **4**"]
    + [" 4 as it is good", " 4\nThe image is good.", " 4\nFinal Score: 4", " 1 or Final Score: 5", " 4</s>"],
)
def test_anything_but_a_plain_number_is_no_score(said):
    assert math.isnan(read_score(f"cat (animal): 1\nFinal Score:{said}"))


@pytest.mark.parametrize(
    "answer",
    [None, "", "4", "Final Score", "Final Score 4", "Final Score : 4", "final score: 4", "Final score: 4", "Score: 4"]
    + ["**Final Score:** 4", "'Final Score:' Final Score: 4", "4 Final Score:"],
)
def test_other_words_before_the_number_are_no_score(answer):
    assert math.isnan(read_score(answer))


@given(st.text())
def test_any_text_gives_nan_or_a_score_of_one_to_five(text):
    score = read_score(f"Final Score: {text}")
    assert math.isnan(score) or (1 <= score <= 5 and float(text) == score)


@pytest.fixture
def prompt_file(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT)
    return str(file)


def picture(height, width, seed=0):
    return torch.randint(256, (3, height, width), generator=derived_generator("u", seed), dtype=torch.uint8)


def scored(url, prompt_file, captions=("a cat",), images=None, **options):
    images = images or [picture(5, 7, seed=i) for i in range(len(captions))]
    return Scorer(CPU, prompt_file, MODEL, url, **options).score([{"prompt": text} for text in captions], images)


def test_the_endpoint_gets_prompt_and_pixels_unchanged(prompt_file, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    captions, images = ["a cat", "{caption} 100% [é]"], [picture(5, 7), picture(9, 4)]
    with endpoint(lambda request: saying("x: 1\nFinal Score: 3.5")) as (url, seen):
        assert scored(url + "/", prompt_file, captions, images) == {"unifiedreward": [3.5, 3.5]}
    seen.sort(key=lambda request: request["text"])
    for request, caption, image in zip(seen, captions, images, strict=True):
        assert request["text"] == f"Rate {{it}} after 'Final Score:'.\nCaption: [{caption}] %s"
        assert torch.equal(request["levels"], image) and request["type"] == "data:image/png"
        assert request["headers"]["Authorization"] == "Bearer secret"
        body = request["body"]
        assert (body["model"], body["temperature"], body["max_tokens"]) == (MODEL, 0, 512)
        assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]


def test_requests_overlap_up_to_the_limit_and_keep_their_order(prompt_file):
    """Each reply waits for a second request; `most` is the largest number at a time."""
    lock, both, now, most = threading.Lock(), threading.Barrier(2), [0], [0]

    def answer(request):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        both.wait(SECONDS)
        with lock:
            now[0] -= 1
        return saying(f"Final Score: {request['text'].split('[')[1][0]}")

    captions = ["1", "5", "2", "4", "3", "1"]
    with endpoint(answer) as (url, _):
        assert scored(url, prompt_file, captions, parallel=2)["unifiedreward"] == [1, 5, 2, 4, 3, 1]
    assert most == [2]


def test_an_answer_in_another_form_is_nan_for_its_image_only(prompt_file):
    answers = {"good": saying("Final Score: 4"), "cut": saying("Final Score: 4", "length"), "odd": saying("It is 4.")}
    with endpoint(lambda request: answers[request["text"].split("[")[1].split("]")[0]]) as (url, _):
        good, cut, odd, last = scored(url, prompt_file, ["good", "cut", "odd", "good"])["unifiedreward"]
    assert good == last == 4 and math.isnan(cut) and math.isnan(odd)


def test_a_surplus_reply_of_the_endpoint_is_no_score(prompt_file):
    """The server keeps the connection, and sends a second reply after each one, in the same packet."""

    def answer(head: bytes, body: bytes) -> bytes:
        if head.startswith(b"GET"):
            return reply(json.dumps({"data": [{"id": MODEL}]}).encode())
        return reply(saying("Final Score: 4")[1]) + reply(saying("Final Score: 1")[1])

    with raw_server(answer) as url:
        scorer = Scorer(CPU, prompt_file, MODEL, url, parallel=1)
        for _ in range(2):
            assert scorer.score([{"prompt": "a"}] * 3, [picture(4, 4)] * 3) == {"unifiedreward": [4.0] * 3}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_not_retried(prompt_file, status):
    with endpoint(lambda request: (status, b'{"error": {"message": "too\\n long"}}')) as (url, seen):
        with pytest.raises(ValueError, match=f"says {status}: .*too"):
            scored(url, prompt_file)
        assert len(seen) == 1


@pytest.mark.parametrize(
    "reply",
    [(500, b"oops"), (502, b""), (503, b"{}"), (429, b"slow down"), (408, b""), (200, b""), (200, b"Final Score: 4")]
    + [(200, b"[]"), (200, b"{}"), (200, b'{"choices": []}'), (200, b'{"choices": [{"finish_reason": "stop"}]}')]
    + [saying(None), (200, json.dumps({"choices": [{"message": {"content": "Final Score: 4"}}]}).encode())],
)  # fmt: skip
def test_a_transient_error_of_the_endpoint_is_neither_refusal_nor_score(prompt_file, reply):
    """Our server turns it into a 500, and a refusal into a 400."""
    with endpoint(lambda request: reply) as (url, _):
        with pytest.raises(RuntimeError, match="127.0.0.1"):
            scored(url, prompt_file)
        batcher = Batcher([Scorer(CPU, prompt_file, MODEL, url)], batch_size=4, wait=0.0)
        answer = batcher.submit("unifiedreward", [{"prompt": "a"}], [picture(4, 4)])
        assert isinstance(answer.exception(SECONDS), ScorerFailed)
        batcher.close()


def test_a_silent_or_dead_endpoint_fails_in_bounded_time(prompt_file):
    silent = threading.Event()

    def answer(request):
        silent.wait(SECONDS)
        return saying("Final Score: 4")

    with endpoint(answer) as (url, _):
        scorer, patient = (Scorer(CPU, prompt_file, MODEL, url, timeout=seconds) for seconds in (0.1, SECONDS))
        with pytest.raises(RuntimeError, match="within 0.1 s"):
            scorer.score([{"prompt": "a"}] * 3, [picture(4, 4)] * 3)
        silent.set()
    with pytest.raises(httpx.ConnectError):
        patient.score([{"prompt": "a"}], [picture(4, 4)])


@pytest.mark.parametrize("caption", ["a <|image_pad|> cat", "<|im_end|>", "<image>"])
def test_a_caption_with_one_of_the_models_tokens_is_refused(prompt_file, caption):
    with endpoint(lambda request: saying("Final Score: 4")) as (url, seen):
        with pytest.raises(ValueError, match="own tokens"):
            scored(url, prompt_file, ["a cat", caption])
        assert not seen


def test_a_wrong_endpoint_or_model_is_reported_at_the_start(prompt_file):
    with endpoint(lambda request: saying("Final Score: 4")) as (url, _):
        with pytest.raises(UserError, match=f"has no other but {MODEL}"):
            Scorer(CPU, prompt_file, "other", url)
        with pytest.raises(UserError, match="no list of models at .*404"):
            Scorer(CPU, prompt_file, MODEL, url + "/v1")
    for wrong in (url, "nonsense", "http://[", "http://127.0.0.1:port/v1"):
        with pytest.raises(UserError, match="no list of models") as raised:
            Scorer(CPU, prompt_file, MODEL, wrong)
        assert "\n" not in str(raised.value)


def test_a_missing_option_is_named():
    with pytest.raises(UserError, match="option `prompt_file` is missing"):
        check_options(Scorer, "unifiedreward", {"endpoint": "http://127.0.0.1/v1"})
