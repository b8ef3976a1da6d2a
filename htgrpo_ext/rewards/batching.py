"""Dynamic batching: what many clients ask is scored together, on one device or several. Knows nothing of HTTP.

One thread per scorer; all take from one queue. One of them at a time collects a batch, while the others score.
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

from htgrpo_ext.rewards.scorers import Scorer

QUEUE = 2048  # images that may wait; a client is told to come again rather than to wait for hours


class Busy(Exception):
    """The queue is full, or the server is shutting down: come again."""


class ScorerFailed(Exception):
    """A scorer raised, or did not give one number per image; its own exception, if any, is the cause."""


@dataclass(eq=False)
class _Request:
    reward: str
    scores: list[float]
    missing: int  # images not scored yet
    answer: Future


@dataclass(eq=False)
class _Piece:
    """A request, or as much of a large one as fits into a batch."""

    request: _Request
    start: int  # of its first image in the request
    prompts: Sequence[dict]
    images: Sequence[Tensor]


class Batcher:
    """Scores for whoever asks, from any thread.

    scorers     loaded, one thread each; only that thread uses it
    batch_size  images that are scored at once, at most
    wait        seconds that the first request of a batch waits for others, at most
    on_batch    told of each batch: images, seconds it took, whether the scorer gave usable scores; from any thread
    queue       images that may wait; a single larger request is let in when nothing waits
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
        self._changed = threading.Condition()  # guards all of the above, and what requests hold
        self._turn = threading.Lock()  # of the one worker that collects
        self._threads = [threading.Thread(target=self._work, args=(scorer,), daemon=True) for scorer in scorers]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images in the queue."""
        with self._changed:
            return sum(len(piece.images) for piece in self._pieces)

    def submit(self, reward: str, prompts: Sequence[dict], images: Sequence[Tensor]) -> Future:
        """A future of one finite float per image; to cancel it takes back what is not scored yet.

        Its exception is ValueError for what no second try will cure, otherwise ScorerFailed.
        Raises Busy.
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
        """Take no more, score what waits, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, scorer: Scorer) -> None:
        while batch := self._next_batch():
            self._score(scorer, batch)

    def _next_batch(self) -> list[_Piece]:
        """What to score next, as soon as no more fits, or no more came in time; empty when all is over."""
        batch: list[_Piece] = []
        count, latest = 0, math.inf
        with self._turn, self._changed:
            while True:
                while self._pieces and count + len(self._pieces[0].images) <= self.batch_size:
                    piece = self._pieces.popleft()
                    if not piece.request.answer.done():  # given up, or failed already
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
        """Score a batch and answer; where that fails, request by request, so that only the guilty one does."""
        start = time.monotonic()
        scores, failure = [], None
        try:
            scores = _scores(scorer, batch)
        except BaseException as error:  # even SystemExit: whoever asked must be answered, and the thread go on
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
            if not math.isfinite(score):
                self._fail(piece, ValueError(f"image {i}: its {request.reward} is {score}, no finite number"))
                return
        with self._changed:
            request.scores[piece.start : piece.start + len(scores)] = scores
            request.missing -= len(scores)
        if not request.missing:
            with suppress(InvalidStateError):  # given up
                request.answer.set_result(request.scores)

    def _fail(self, piece: _Piece, error: BaseException) -> None:
        if not isinstance(error, ValueError | ScorerFailed):
            failed = ScorerFailed(f"{type(error).__name__}: {error}")
            failed.__cause__, error = error, failed
        with suppress(InvalidStateError):  # given up, or another piece has failed
            piece.request.answer.set_exception(error)


def _scores(scorer: Scorer, batch: Sequence[_Piece]) -> list[list[float]]:
    """Each piece's own scores of the reward it asks for, perhaps NaN. Raises ScorerFailed and what the scorer does."""
    prompts = [prompt for piece in batch for prompt in piece.prompts]
    images = [image for piece in batch for image in piece.images]
    given = scorer.score(prompts, images)
    asked = {}
    for reward in {piece.request.reward for piece in batch}:
        try:
            asked[reward] = [float(score) for score in given[reward]]
        except Exception as error:  # whatever it gave, it is not what a scorer gives
            raise ScorerFailed(f"no list of numbers as {reward} from the scorer ({error!r})") from error
        if len(asked[reward]) != len(images):
            raise ScorerFailed(f"{len(asked[reward])} scores for {len(images)} images from the scorer")
    scores, start = [], 0
    for piece in batch:
        end = start + len(piece.images)
        scores.append(asked[piece.request.reward][start:end])
        start = end
    return scores
