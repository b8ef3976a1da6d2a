"""Requests of many, scored together: everyone gets their own scores, and nobody another's fault."""

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
    """The worker is in the middle of a batch of one, until `scorer.gate` is set."""
    scorer.gate.clear()
    first = ask(batcher, 1)
    assert scorer.entered.acquire(timeout=SECONDS)
    return first


def test_what_lies_there_is_scored_together_and_everyone_gets_their_own():
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
    # 10 and 20, 21 are three images, the next two would be too many; a request is not torn apart to fill a batch
    assert scorer.batches == [[1], [10, 20, 21], [30, 31, 40, 50], [60]]


def test_a_full_batch_waits_for_nobody_and_one_that_is_not_full_is_waited_for():
    scorer = Levels()
    batcher = Batcher([scorer], batch_size=3, wait=3600)
    answers = [ask(batcher, n) for n in (1, 2, 3)]
    assert [a.result(SECONDS) for a in answers] == [[1], [2], [3]]
    last = ask(batcher, 4)
    batcher.close()  # ends the wait, and answers what is there
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
        ("nan", ValueError, "image 0: its level is nan, no finite number"),
        ("inf", ValueError, "image 0: its level is -inf, no finite number"),
    ],
)
def test_only_the_guilty_request_fails(fault, error, says):
    scorer = Levels()
    batcher = Batcher([scorer], batch_size=4, wait=0)
    held_up(batcher, scorer)
    answers = [ask(batcher, 10), ask(batcher, 66, prompt=fault), ask(batcher, 20, 21)]
    scorer.gate.set()
    with pytest.raises(error, match=says):
        answers[1].result(SECONDS)
    assert answers[0].result(SECONDS) == [10] and answers[2].result(SECONDS) == [20, 21]
    assert ask(batcher, 30).result(SECONDS) == [30]  # the worker lives on
    batcher.close()
    together = [[1], [10, 66, 20, 21]]
    alone = [] if fault in ("nan", "inf") else [[10], [66], [20, 21]]
    assert scorer.batches == [*together, *alone, [30]]


def test_a_score_that_is_not_finite_is_named_by_its_place_in_the_request():
    batcher = Batcher([Levels()], batch_size=2, wait=0)
    prompts = [{"prompt": "nan" if i == 4 else "a"} for i in range(6)]
    with pytest.raises(ValueError, match="^image 4: its level is nan"):
        batcher.submit("level", prompts, images(*range(6))).result(SECONDS)
    batcher.close()


def test_a_full_queue_says_so_but_a_large_request_gets_its_turn():
    scorer = Levels()
    batcher = Batcher([scorer], batch_size=2, wait=0, queue=3)
    held_up(batcher, scorer)
    answers = [ask(batcher, 1, 2, 3, 4, 5)]  # more than the queue holds, but nothing waits
    with pytest.raises(Busy, match="5 images are waiting"):
        ask(batcher, 6)
    scorer.gate.set()
    assert answers[0].result(SECONDS) == [1, 2, 3, 4, 5]
    batcher.close()


def test_what_was_given_up_is_not_scored():
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


def test_images_of_many_threads_all_come_back_to_their_own():
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


def test_the_stub_scores_what_it_is_said_to():
    given = Levels().score([{"prompt": "a"}, {"prompt": "nan"}], [image(3), image(4)])
    assert given["level"][0] == 3 and math.isnan(given["level"][1]) and given["double"] == [6, 8]
    assert image(3).dtype == torch.uint8
