"""The images of one shard on their way: read → decode → batch → caption → score → a line of results.

One thread owns the shard: it hands images to a few threads that read and decode them, is told of each answer of the
batcher, and writes the line when an image's last answer has come. So there is no lock, no thread and no statement for
an image. How much is under way is bounded by count and by bytes, whatever the size of the shard.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from itertools import product
from queue import Empty, SimpleQueue
from typing import Any

from shared.database.workers import ServedModel
from shared.intake.images import decode, reduced
from shared.leasing.endings import INTERNAL, Stopped
from shared.settings import Settings
from tuwen.annotations import Annotation, Caption, Provenance, Recognition
from tuwen.datasets import DatasetRequest
from tuwen.engine import DescribeItem, Item, MatchItem, Output, Pixels, RecognizeItem
from tuwen.errors import EngineStartFailed, InvalidRequest, TuwenError
from tuwen.jobs import DescribeResult, JobError, Kind, MatchResult, RecognizeResult
from tuwen.version import __version__
from workers.datasets.filters import after, before
from workers.datasets.sources import Held, SourceImage
from workers.inference.batcher import Batcher, Released

log = logging.getLogger(__name__)

PRIORITY = -1
"""In the batcher: below every job, so that they go first and images only fill the rest of each batch."""

UNDER_WAY = 1024
"""Images of a shard that are somewhere between being read and being written; two batches of the largest engines."""

BYTES_UNDER_WAY = 256 * 2**20
"""Of decoded pixels that wait for the engine."""

REMOTE_THREADS = 16
"""That fetch images from elsewhere: they mostly wait."""

RETRY_PAUSE = 0.5
"""Seconds before an image that failed for a reason that may pass is tried again; doubles with each attempt."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a worker has to annotate images with."""

    settings: Settings
    batcher: Batcher
    models: Mapping[Kind, ServedModel]
    worker: str


class Window:
    """Room for `size` bytes of pixels. A picture larger than all of it still gets in, alone."""

    def __init__(self, size: int):
        self._size = size
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()

    def enter(self, count: int) -> None:
        """Wait for room. Raises Stopped when there is to be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._used == 0 or self._used + count <= self._size)
            if self._closed:
                raise Stopped
            self._used += count

    def leave(self, count: int) -> None:
        with self._changed:
            self._used -= count
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(slots=True)
class Work:
    """One image under way."""

    index: int
    image: SourceImage
    known: Annotation
    """What is known of it so far."""
    tries: int = 1
    """Of this run; `known.attempts` are those of earlier ones."""
    pixels: Pixels | None = None
    unanswered: int = 0
    scoring: bool = False
    captions: list[Caption] = field(default_factory=list)
    recognition: Recognition | None = None
    failure: BaseException | None = None
    futures: list[Future[Output]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Answer:
    work: Work
    item: Item
    future: Future[Output]


class Annotating:
    """Annotates images of one shard, in the thread that calls `run`.

    Args:
        read: the bytes of an image; called from several threads.
        ended: told the index of each image that is over and its annotation, in the calling thread.
    """

    def __init__(
        self,
        means: Means,
        request: DatasetRequest,
        read: Callable[[SourceImage], bytes],
        ended: Callable[[int, Annotation], None],
        *,
        remote: bool,
    ):
        self._means = means
        self._request = request
        self._read = read
        self._ended = ended
        self._window = Window(BYTES_UNDER_WAY // means.settings.shards_at_once)
        threads = REMOTE_THREADS if remote else means.settings.decode_threads
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._cells = threading.Lock()
        self._waiting: deque[tuple[int, SourceImage, Annotation]] = deque()
        self._later: list[tuple[float, int, Work]] = []
        self._under_way: dict[int, Work] = {}
        self._news: SimpleQueue[Work | _Answer | None] = SimpleQueue()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Have `run` raise Stopped soon. From any thread."""
        self._stopped.set()
        self._window.close()
        self._news.put(None)

    def close(self) -> None:
        self._window.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self, images: Iterable[tuple[int, SourceImage, Annotation]], *, alone: bool = False, tick: Callable[[], None]
    ) -> None:
        """Annotate these images: each has ended when this returns.

        Args:
            images: index in the shard, where it is, and what is known of it: its `attempts` were earlier ones.
            alone: let each item have a batch of its own.
            tick: called now and then.

        Raises:
            Stopped: `stop` was called, or the batcher stops.
            EngineStartFailed: the engine does not come back.
        """
        self._waiting.extend(images)
        try:
            while self._waiting or self._later or self._under_way:
                self._feed()
                news = self._next_news()
                tick()
                if self._stopped.is_set():
                    raise Stopped
                work = self._hear(news, alone) if news is not None else None
                if work is not None and not work.unanswered:
                    self._settle(work)
        finally:
            for work in self._under_way.values():
                for future in work.futures:
                    future.cancel()

    def _feed(self) -> None:
        """Begin as many images as there is room for, first those whose pause is over."""
        while self._later and self._later[0][0] <= time.monotonic() and len(self._under_way) < UNDER_WAY:
            self._begin(heapq.heappop(self._later)[2])
        while self._waiting and len(self._under_way) < UNDER_WAY:
            self._begin(Work(*self._waiting.popleft()))

    def _begin(self, work: Work) -> None:
        self._under_way[work.index] = work
        self._pool.submit(self._prepare, work)

    def _settle(self, work: Work) -> None:
        """Nothing is open any more: it has ended, or is to be tried again in a while."""
        del self._under_way[work.index]
        if work.pixels is not None:
            self._window.leave(work.pixels.nbytes)
            work.pixels = None
        if self._is_to_be_tried_again(work):
            due = time.monotonic() + RETRY_PAUSE * 2 ** (work.tries - 1)
            heapq.heappush(self._later, (due, work.index, Work(work.index, work.image, work.known, work.tries + 1)))
        else:
            self._ended(work.index, self._annotation(work))

    def _next_news(self) -> Work | _Answer | None:
        with suppress(Empty):
            return self._news.get(timeout=RETRY_PAUSE)
        return None

    # ── in the threads that decode ────────────────────────────────────────────────────────────────

    def _prepare(self, work: Work) -> None:
        try:
            self._decode(work)
        except Stopped:
            return
        except BaseException as error:  # noqa: BLE001 (the shard's thread judges it)
            work.failure = error
        self._news.put(work)

    def _decode(self, work: Work) -> None:
        if self._stopped.is_set():
            raise Stopped
        data = self._bytes(work.image)
        image = decode(data, self._means.settings)
        seen = {"sha256": sha256(data).hexdigest(), "size": len(data), "width": image.width, "height": image.height}
        work.known = work.known.model_copy(update=seen)
        drop = before(self._request.filters, work.known)
        if drop is not None:
            work.known = work.known.model_copy(update={"drop": drop})
            return
        decoded = reduced(image, self._means.settings)
        self._window.enter(decoded.nbytes)
        work.pixels = decoded

    def _bytes(self, image: SourceImage) -> bytes:
        if image.held is not Held.CELL:
            return self._read(image)
        with self._cells:  # a reader of tables remembers the last rows
            return self._read(image)

    # ── in the shard's thread ─────────────────────────────────────────────────────────────────────

    def _hear(self, news: Work | _Answer, alone: bool) -> Work:
        """Take in what has come, and ask what follows from it; the image that it is about."""
        work = news if isinstance(news, Work) else news.work
        try:
            if isinstance(news, Work):
                if work.failure is None and work.known.drop is None:
                    self._ask(work, self._first_questions(work), alone)
                return work
            work.unanswered -= 1
            self._take(work, news.item, news.future.result())
        except (Released, CancelledError):
            raise Stopped from None
        except EngineStartFailed:
            raise
        except Exception as error:  # noqa: BLE001 (judged when the last answer is there)
            work.failure = error
        if work.unanswered == 0 and work.failure is None and not work.scoring:
            work.scoring = True
            self._ask(work, self._second_questions(work), alone)
        return work

    def _ask(self, work: Work, items: list[Item], alone: bool) -> None:
        work.unanswered = len(items)
        # It may be the one that killed an engine: let it not take neighbours with it.
        alone = alone or work.tries > 1
        for item in items:
            future = self._means.batcher.submit(item, priority=PRIORITY, alone=alone)
            work.futures.append(future)
            future.add_done_callback(partial(self._answered, work, item))

    def _answered(self, work: Work, item: Item, future: Future[Output]) -> None:
        """In the batcher's thread, which has no time."""
        self._news.put(_Answer(work, item, future))

    def _first_questions(self, work: Work) -> list[Item]:
        request, seen = self._request, _decoded(work)
        items: list[Item] = []
        if Kind.DESCRIBE in request.tasks:
            items += [
                DescribeItem(seen, language, style, request.max_tokens, request.prompt, seed=number or None)
                for language in request.languages
                for style in request.styles
                for number in range(request.candidates)
            ]
        elif Kind.MATCH in request.tasks:
            if not work.known.existing:
                raise InvalidRequest("The source has no caption of this image that could be scored.")
            items.append(MatchItem(seen, work.known.existing[0]))
        if Kind.RECOGNIZE in request.tasks:
            items.append(RecognizeItem(seen))
        return items

    def _second_questions(self, work: Work) -> list[Item]:
        if not (self._request.scored and Kind.DESCRIBE in self._request.tasks):
            return []
        return [MatchItem(_decoded(work), text) for text in {caption.text for caption in work.captions}]

    def _take(self, work: Work, item: Item, answer: Output) -> None:
        match item, answer:
            case DescribeItem(), DescribeResult():
                parameters = {"style": item.style, "prompt": item.prompt or None, "max_tokens": item.max_tokens}
                parameters["seed"] = item.seed
                work.captions.append(
                    Caption(
                        text=answer.text,
                        language=answer.language,
                        style=item.style,
                        confidence=answer.confidence,
                        out_of_domain=answer.out_of_domain,
                        tokens=answer.tokens,
                        provenance=self._provenance(Kind.DESCRIBE, parameters),
                    )
                )
            case RecognizeItem(), RecognizeResult():
                fields = answer.model_dump(exclude={"kind"})
                work.recognition = Recognition(**fields, provenance=self._provenance(Kind.RECOGNIZE, {}))
            case MatchItem(), MatchResult():
                self._score(work, item.text, answer.score)

    def _score(self, work: Work, text: str, score: float) -> None:
        if Kind.DESCRIBE not in self._request.tasks:
            work.known = work.known.model_copy(update={"existing_score": score})
            return
        scored = {"score": score, "scored_by": self._provenance(Kind.MATCH, {})}
        work.captions = [
            caption.model_copy(update=scored) if caption.text == text else caption for caption in work.captions
        ]

    def _provenance(self, kind: Kind, parameters: dict[str, Any]) -> Provenance:
        # Not validated: it is ours, and this is done for every caption of millions.
        return Provenance.model_construct(
            model=self._means.models[kind].model,
            revision=self._means.models[kind].revision,
            parameters={name: value for name, value in parameters.items() if value is not None},
            software=f"tuwen {__version__}",
            worker=self._means.worker,
            created_at=datetime.now(UTC),
        )

    def _is_to_be_tried_again(self, work: Work) -> bool:
        if work.failure is None or work.tries >= self._request.max_attempts:
            return False
        return not isinstance(work.failure, TuwenError) or work.failure.retryable

    def _annotation(self, work: Work) -> Annotation:
        """What the image has come to."""
        attempts = work.known.attempts + work.tries
        if work.failure is not None:
            return work.known.model_copy(update={"error": _error(work), "attempts": attempts})
        best, others = _ranked(work.captions, self._request)
        known = {"captions": best, "others": others, "recognition": work.recognition, "attempts": attempts}
        annotation = work.known.model_copy(update=known)
        drop = annotation.drop or after(self._request.filters, annotation)
        return annotation if drop is None else annotation.model_copy(update={"drop": drop})


def _decoded(work: Work) -> Pixels:
    if work.pixels is None:
        raise AssertionError("only images that were decoded are asked about")
    return work.pixels


def _ranked(captions: Iterable[Caption], request: DatasetRequest) -> tuple[tuple[Caption, ...], tuple[Caption, ...]]:
    """The best of each language and style by its score, and the different others, the best first."""
    best: dict[tuple[str, str], Caption] = {}
    others: dict[tuple[str, str, str], Caption] = {}
    for caption in sorted(captions, key=lambda caption: (caption.score or 0.0, caption.confidence), reverse=True):
        if best.setdefault((caption.language, caption.style), caption).text != caption.text:
            others.setdefault((caption.language, caption.style, caption.text), caption)
    in_order = (best.get(key) for key in product(request.languages, request.styles))
    return tuple(caption for caption in in_order if caption is not None), tuple(others.values())


def _error(work: Work) -> JobError:
    if isinstance(work.failure, TuwenError):
        return JobError(code=work.failure.code, detail=str(work.failure), retryable=work.failure.retryable)
    log.error("image %r failed in a way nobody foresaw", work.image.name, exc_info=work.failure)
    return INTERNAL
