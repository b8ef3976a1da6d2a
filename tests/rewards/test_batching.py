"""Dynamic batching: each request gets its own scores, and no request fails because of another."""

import math
import threading
from concurrent.futures import CancelledError

import pytest
import torch

from helpers.reward_scorers import Levels, image, images
from htgrpo_ext.rewards.batching import Batcher, Busy, ScorerFailed

SECONDS = 20  # against hangs


def ask(batcher, *levels, prompt="a", reward="level"):
    return batcher.submit(reward, [{"prompt": prompt}] * len(levels), images(*levels))


def held_up(batcher, scorer):
    """Keep the worker busy with a batch of one until `scorer.gate` is set."""
    scorer.gate.clear()
    first = ask(batcher, 1)
    assert scorer.entered.acquire(timeout=SECONDS)
    return first


def test_waiting_requests_share_batches_and_each_gets_its_own_scores():
    scorer = Levels()
    batcher = Batcher([scorer], batch_size=4, wait=0)
    first = held_up(batcher, scorer)
    answers = [ask(batcher, 10), ask(batcher, 20, 21), ask(batcher, 30, 31), ask(batcher, 40), ask(batcher, 50)]
    answers.append(ask(batcher, 60, reward="double"))
    assert batcher.waiting == 8
    scorer.gate.set()
    assert first.result(SECONDS) == [1]
    assert [a.result(SECONDS) for a in answers] == [[10], [20, 21], [30, 31], [40], [50], [120]]
    batcher.close()
    # 10 and 20, 21 are three images; the next two would make five, and a request is not split to fill a batch
    assert scorer.batches == [[1], [10, 20, 21], [30, 31, 40, 50], [60]]


def test_only_a_batch_that_is_not_full_waits():
    scorer = Levels()
    batcher = Batcher([scorer], batch_size=3, wait=3600)
    answers = [ask(batcher, n) for n in (1, 2, 3)]
    assert [a.result(SECONDS) for a in answers] == [[1], [2], [3]]
    last = ask(batcher, 4)
    batcher.close()  # ends the wait and scores what is there
    assert last.result(0) == [4] and scorer.batches == [[1, 2, 3], [4]]
    with pytest.raises(Busy, match="shutting down"):
        ask(batcher, 5)


def test_a_request_larger_than_a_batch_is_scored_in_parts():
    scorer = Levels()
    batcher = Batcher([scorer], batch_size=4, wait=0)
    assert ask(batcher, *range(10)).result(SECONDS) == list(range(10))
    batcher.close()
    assert [len(batch) for batch in scorer.batches] == [4, 4, 2]


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("refuse", ValueError, "refused"),
        ("crash", ScorerFailed, "RuntimeError: crashed"),
        ("exit", ScorerFailed, "SystemExit: 3"),
        ("stop", ScorerFailed, "StopIteration"),
        ("short", ScorerFailed, "0 scores for 1 images"),
        ("none", ScorerFailed, "no list of numbers as level"),
        ("words", ScorerFailed, "no list of numbers as level"),
        ("other", ScorerFailed, "no list of numbers as level from the scorer .KeyError"),
        ("nan", ValueError, "image 0: its level is nan, not a finite number"),
        ("inf", ValueError, "image 0: its level is -inf, not a finite number"),
    ],
)
def test_only_the_request_at_fault_fails(fault, error, says):
    scorer = Levels()
    batcher = Batcher([scorer], batch_size=4, wait=0)
    held_up(batcher, scorer)
    answers = [ask(batcher, 10), ask(batcher, 66, prompt=fault), ask(batcher, 20, 21)]
    scorer.gate.set()
    with pytest.raises(error, match=says):
        answers[1].result(SECONDS)
    assert answers[0].result(SECONDS) == [10] and answers[2].result(SECONDS) == [20, 21]
    assert ask(batcher, 30).result(SECONDS) == [30]  # the worker goes on
    batcher.close()
    together = [[1], [10, 66, 20, 21]]
    alone = [] if fault in ("nan", "inf") else [[10], [66], [20, 21]]
    assert scorer.batches == [*together, *alone, [30]]


def test_a_score_that_cannot_be_used_is_named_by_its_index_in_the_request():
    batcher = Batcher([Levels()], batch_size=2, wait=0)
    prompts = [{"prompt": "nan" if i == 4 else "a"} for i in range(6)]
    with pytest.raises(ValueError, match="^image 4: its level is nan"):
        batcher.submit("level", prompts, images(*range(6))).result(SECONDS)
    batcher.close()


def test_a_full_queue_refuses_but_an_empty_one_takes_a_large_request():
    scorer = Levels()
    batcher = Batcher([scorer], batch_size=2, wait=0, queue=3)
    held_up(batcher, scorer)
    answers = [ask(batcher, 1, 2, 3, 4, 5)]  # more than the queue holds, but nothing waits
    with pytest.raises(Busy, match="5 images are waiting"):
        ask(batcher, 6)
    scorer.gate.set()
    assert answers[0].result(SECONDS) == [1, 2, 3, 4, 5]
    batcher.close()


def test_a_cancelled_request_is_not_scored():
    scorer = Levels()
    batcher = Batcher([scorer], batch_size=2, wait=0)
    held_up(batcher, scorer)
    given_up, kept = ask(batcher, 2, 3), ask(batcher, 4)
    given_up.cancel()
    scorer.gate.set()
    assert kept.result(SECONDS) == [4]
    batcher.close()
    with pytest.raises(CancelledError):
        given_up.result(0)
    assert scorer.batches == [[1], [4]]


def test_two_workers_work_at_the_same_time():
    both = threading.Barrier(2)

    class Meets(Levels):
        def score(self, prompts, images):
            both.wait(SECONDS)
            return super().score(prompts, images)

    scorers = [Meets(), Meets()]
    batcher = Batcher(scorers, batch_size=1, wait=0)
    answers = [ask(batcher, n) for n in range(4)]
    assert [a.result(SECONDS) for a in answers] == [[n] for n in range(4)]
    batcher.close()
    assert [len(scorer.batches) for scorer in scorers] == [2, 2]
    assert sorted(level for scorer in scorers for batch in scorer.batches for level in batch) == [0, 1, 2, 3]


def test_requests_of_many_threads_get_their_own_scores():
    scorers = [Levels(), Levels()]
    batcher = Batcher(scorers, batch_size=5, wait=0.001)
    wrong = []

    def client(number: int) -> None:
        for i in range(20):
            levels = [(number * 31 + i * 7 + j) % 256 for j in range(1 + (number + i) % 7)]
            if ask(batcher, *levels).result(SECONDS) != levels:
                wrong.append((number, i))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    batcher.close()
    assert not wrong
    scored = sum(len(batch) for scorer in scorers for batch in scorer.batches)
    assert scored == sum(1 + (n + i) % 7 for n in range(8) for i in range(20))


def test_the_stub_scorer_returns_levels():
    given = Levels().score([{"prompt": "a"}, {"prompt": "nan"}], [image(3), image(4)])
    assert given["level"][0] == 3 and math.isnan(given["level"][1]) and given["double"] == [6, 8]
    assert image(3).dtype == torch.uint8
