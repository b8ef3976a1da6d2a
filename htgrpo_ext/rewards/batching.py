"""Dynamic batching: requests of many clients are scored together, on one device or several. Independent of HTTP.

One thread per scorer; all take requests from one queue. One thread at a time collects a batch while the others score.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from htgrpo_ext.rewards import fault_of
from htgrpo_ext.rewards.scorers import Scorer

QUEUE = 2048  # images that may wait; a client is better told to come again than made to wait for hours


class Busy(Exception):
    """The queue is full, or the server is shutting down: the client should retry."""


class ScorerFailed(Exception):
    """A scorer raised, or did not return one number per image; its own exception, if any, is the cause."""


@dataclass(eq=False)
class _Request:
    reward: str
    scores: list[float]
    missing: int  # images not scored yet
    answer: Future[list[float]]


@dataclass(eq=False)
class _Piece:
    """A request, or the part of a large one that fits into a batch."""

    request: _Request
    start: int  # index in the request of the piece's first image
    prompts: Sequence[dict]
    images: Sequence[Tensor]


class Batcher:
    """Scores requests from any thread.

    scorers     loaded; each gets a thread of its own, and no other thread uses it
    batch_size  most images of a batch
    wait        longest time, in seconds, that the first request of a batch waits for others
    on_batch    called after each batch, from any thread: images, seconds, whether the scores could be used
    queue       most images that wait; a larger request is accepted when nothing else waits
    """

    def __init__(
        self,
        scorers: Sequence[Scorer],
        batch_size: int,
        wait: float,
        on_batch: Callable[[int, float, bool], None] = lambda images, seconds, good: None,
        queue: int = QUEUE,
    ):
        self.batch_size, self.wait, self.on_batch, self.queue = batch_size, wait, on_batch, queue
        self._pieces: deque[_Piece] = deque()
        self._closed = False
        self._changed = threading.Condition()  # guards the two above and the scores in requests
        self._turn = threading.Lock()  # held by the one worker that collects
        self._threads = [threading.Thread(target=self._work, args=(scorer,), daemon=True) for scorer in scorers]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        with self._changed:
            return sum(len(piece.images) for piece in self._pieces)

    def submit(self, reward: str, prompts: Sequence[dict], images: Sequence[Tensor]) -> Future[list[float]]:
        """Queue a request. Returns a future of one finite float per image.

        To cancel the future withdraws what is not scored yet. The future fails with ValueError if no retry can help,
        otherwise with ScorerFailed. Raises Busy.
        """
        request = _Request(reward, [math.nan] * len(images), len(images), Future())
        ends = [(start, start + self.batch_size) for start in range(0, len(images), self.batch_size)]
        pieces = [_Piece(request, start, prompts[start:end], images[start:end]) for start, end in ends]
        with self._changed:
            if self._closed:
                raise Busy("the server is shutting down")
            waiting = self.waiting
            if waiting and waiting + len(images) > self.queue:
                raise Busy(f"{waiting} images are waiting already")
            self._pieces += pieces
            self._changed.notify_all()
        return request.answer

    def close(self) -> None:
        """Refuse new requests, score those that wait, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, scorer: Scorer) -> None:
        while batch := self._next_batch():
            self._score(scorer, batch)

    def _next_batch(self) -> list[_Piece]:
        """Wait until a batch is full or its wait is over. Returns an empty list when the batcher is closed and done."""
        batch: list[_Piece] = []
        count, latest = 0, math.inf
        with self._turn, self._changed:
            while True:
                while self._pieces and count + len(self._pieces[0].images) <= self.batch_size:
                    piece = self._pieces.popleft()
                    if not piece.request.answer.done():  # else cancelled, or another piece has failed
                        batch.append(piece)
                        count += len(piece.images)
                now = time.monotonic()
                if batch and latest == math.inf:
                    latest = now + self.wait
                full = count == self.batch_size or bool(self._pieces)
                if self._closed or full or now >= latest:
                    return batch
                self._changed.wait(latest - now if batch else None)

    def _score(self, scorer: Scorer, batch: list[_Piece]) -> None:
        """Score a batch. If that fails, score its requests one by one, so that only the one at fault fails."""
        start = time.monotonic()
        scores: list[list[float]] = []
        failure = None
        try:
            scores = _scores(scorer, batch)
        except BaseException as error:  # even SystemExit: every client needs a reply, and the thread must go on
            failure = error
        self.on_batch(sum(len(piece.images) for piece in batch), time.monotonic() - start, failure is None)
        if failure is None:
            for piece, own in zip(batch, scores, strict=True):
                self._deliver(piece, own)
        elif len(batch) > 1:
            for piece in batch:
                self._score(scorer, [piece])
        else:
            self._fail(batch[0], failure)

    def _deliver(self, piece: _Piece, scores: Sequence[float]) -> None:
        request = piece.request
        for i, score in enumerate(scores, piece.start):
            if fault := fault_of(score):
                self._fail(piece, ValueError(f"image {i}: its {request.reward} {fault}"))
                return
        with self._changed:
            request.scores[piece.start : piece.start + len(scores)] = scores
            request.missing -= len(scores)
        if not request.missing:
            with suppress(InvalidStateError):  # cancelled
                request.answer.set_result(request.scores)

    def _fail(self, piece: _Piece, error: BaseException) -> None:
        if not isinstance(error, ValueError | ScorerFailed):
            failed = ScorerFailed(f"{type(error).__name__}: {error}")
            failed.__cause__, error = error, failed
        with suppress(InvalidStateError):  # cancelled, or another piece has failed
            piece.request.answer.set_exception(error)


def _scores(scorer: Scorer, batch: Sequence[_Piece]) -> list[list[float]]:
    """Of each piece the scores of the reward that it asks for; some may be NaN. Raises ScorerFailed or the scorer's."""
    prompts = [prompt for piece in batch for prompt in piece.prompts]
    images = [image for piece in batch for image in piece.images]
    given = scorer.score(prompts, images)
    by_reward = {}
    for reward in {piece.request.reward for piece in batch}:
        try:
            by_reward[reward] = [float(score) for score in given[reward]]
        except Exception as error:  # whatever was returned breaks the protocol in some way
            raise ScorerFailed(f"no list of numbers as {reward} from the scorer ({error!r})") from error
        if len(by_reward[reward]) != len(images):
            raise ScorerFailed(f"{len(by_reward[reward])} scores for {len(images)} images from the scorer")
    scores, start = [], 0
    for piece in batch:
        end = start + len(piece.images)
        scores.append(by_reward[piece.request.reward][start:end])
        start = end
    return scores
