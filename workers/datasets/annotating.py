"""Annotation of one shard's images: read → decode → batch → caption → score → a line of results.

One thread owns the shard: it hands images to a few threads that read and decode them, gets each answer of the batcher
as an event, and writes the line when an image's last answer has come. So an image needs no lock, no thread and no
statement. How much is under way is bounded by count and by bytes, whatever the size of the shard.
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
from shared.intake.images import decode, reduce_image
from shared.leasing.endings import INTERNAL, Stopped
from shared.settings import Settings
from tuwen.annotations import Annotation, Caption, Provenance, Recognition
from tuwen.datasets import DatasetRequest
from tuwen.engine import DescribeItem, Item, MatchItem, Output, Pixels, RecognizeItem
from tuwen.errors import EngineStartFailed, InvalidRequest, TuwenError
from tuwen.jobs import DescribeResult, JobError, Kind, MatchResult, RecognizeResult
from tuwen.version import __version__
from workers.datasets.filters import drop_after_models, drop_before_models
from workers.datasets.sources import HeldAs, SourceImage
from workers.inference.batcher import Batcher, Released

log = logging.getLogger(__name__)

PRIORITY = -1
"""Priority in the batcher: below every job, so that jobs go first and images only fill the rest of each batch."""

UNDER_WAY = 1024
"""Most images of a shard between being read and being written; two batches of the largest engines."""

BYTES_UNDER_WAY = 256 * 2**20
"""Most bytes of decoded pixels that wait for the engine."""

REMOTE_THREADS = 16
"""Threads that fetch images from elsewhere; they mostly wait."""

RETRY_PAUSE = 0.5
"""Seconds before an image that failed for a reason that may pass is tried again; doubles with each attempt."""


@dataclass(frozen=True, slots=True)
class AnnotationContext:
    """What annotating images needs from its worker."""

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
        """Wait for room for `count` bytes. Raises Stopped once the window is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._used == 0 or self._used + count <= self._size)
            if self._closed:
                raise Stopped
            self._used += count

    def leave(self, count: int) -> None:
        """Give `count` bytes of room back."""
        with self._changed:
            self._used -= count
            self._changed.notify_all()

    def close(self) -> None:
        """Let everybody who waits in `enter` raise Stopped, now and later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(slots=True)
class ImageTask:
    """One image under way."""

    index: int
    image: SourceImage
    known: Annotation
    """What is known of it so far."""
    tries: int = 1
    """Attempts of this run; `known.attempts` counts those of earlier ones."""
    pixels: Pixels | None = None
    unanswered: int = 0
    scoring: bool = False
    captions: list[Caption] = field(default_factory=list)
    recognition: Recognition | None = None
    failure: BaseException | None = None
    futures: list[Future[Output]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Answer:
    work: ImageTask
    item: Item
    future: Future[Output]


class Annotating:
    """Annotates images of one shard, in the thread that calls `run`.

    Args:
        read: returns the bytes of an image; called from several threads.
        on_end: called with the index and annotation of each image that is done, in the calling thread.
    """

    def __init__(
        self,
        context: AnnotationContext,
        request: DatasetRequest,
        read: Callable[[SourceImage], bytes],
        on_end: Callable[[int, Annotation], None],
        *,
        remote: bool,
    ):
        self._context = context
        self._request = request
        self._read = read
        self._on_end = on_end
        self._window = Window(BYTES_UNDER_WAY // context.settings.shards_at_once)
        threads = REMOTE_THREADS if remote else context.settings.decode_threads
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._cells = threading.Lock()
        self._waiting: deque[tuple[int, SourceImage, Annotation]] = deque()
        self._later: list[tuple[float, int, ImageTask]] = []
        self._under_way: dict[int, ImageTask] = {}
        self._events: SimpleQueue[ImageTask | _Answer | None] = SimpleQueue()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make `run` raise Stopped soon. Any thread may call this."""
        self._stopped.set()
        self._window.close()
        self._events.put(None)

    def close(self) -> None:
        """End the threads, after what they are doing now."""
        self._window.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self, images: Iterable[tuple[int, SourceImage, Annotation]], *, alone: bool = False, tick: Callable[[], None]
    ) -> None:
        """Annotate these images: each is done when this returns.

        Args:
            images: index in the shard, where it is, and what is known of it: its `attempts` were earlier ones.
            alone: run each item in a batch of its own.
            tick: called now and then.

        Raises:
            Stopped: `stop` was called, or the batcher stops.
            EngineStartFailed: the engine does not come back.
        """
        self._waiting.extend(images)
        try:
            while self._waiting or self._later or self._under_way:
                self._feed()
                event = self._wait_for_event()
                tick()
                if self._stopped.is_set():
                    raise Stopped
                work = self._handle(event, alone) if event is not None else None
                if work is not None and not work.unanswered:
                    self._settle(work)
        finally:
            for work in self._under_way.values():
                for future in work.futures:
                    future.cancel()

    def _feed(self) -> None:
        """Start as many images as there is room for, first those whose pause is over."""
        while self._later and self._later[0][0] <= time.monotonic() and len(self._under_way) < UNDER_WAY:
            self._begin(heapq.heappop(self._later)[2])
        while self._waiting and len(self._under_way) < UNDER_WAY:
            self._begin(ImageTask(*self._waiting.popleft()))

    def _begin(self, work: ImageTask) -> None:
        self._under_way[work.index] = work
        self._pool.submit(self._prepare, work)

    def _settle(self, work: ImageTask) -> None:
        """End an image that has all its answers, or schedule another attempt."""
        del self._under_way[work.index]
        if work.pixels is not None:
            self._window.leave(work.pixels.nbytes)
            work.pixels = None
        if self._is_to_be_tried_again(work):
            due = time.monotonic() + RETRY_PAUSE * 2 ** (work.tries - 1)
            heapq.heappush(
                self._later, (due, work.index, ImageTask(work.index, work.image, work.known, work.tries + 1))
            )
        else:
            self._on_end(work.index, self._annotation(work))

    def _wait_for_event(self) -> ImageTask | _Answer | None:
        with suppress(Empty):
            return self._events.get(timeout=RETRY_PAUSE)
        return None

    # ── in the threads that decode ────────────────────────────────────────────────────────────────

    def _prepare(self, work: ImageTask) -> None:
        try:
            self._decode(work)
        except Stopped:
            return
        except BaseException as error:  # noqa: BLE001 (the shard's thread judges it)
            work.failure = error
        self._events.put(work)

    def _decode(self, work: ImageTask) -> None:
        if self._stopped.is_set():
            raise Stopped
        data = self._read_bytes(work.image)
        image = decode(data, self._context.settings)
        seen = {"sha256": sha256(data).hexdigest(), "size": len(data), "width": image.width, "height": image.height}
        work.known = work.known.model_copy(update=seen)
        drop = drop_before_models(self._request.filters, work.known)
        if drop is not None:
            work.known = work.known.model_copy(update={"drop": drop})
            return
        decoded = reduce_image(image, self._context.settings)
        self._window.enter(decoded.nbytes)
        work.pixels = decoded

    def _read_bytes(self, image: SourceImage) -> bytes:
        if image.held is not HeldAs.CELL:
            return self._read(image)
        with self._cells:  # a reader of tables remembers the last rows
            return self._read(image)

    # ── in the shard's thread ─────────────────────────────────────────────────────────────────────

    def _handle(self, event: ImageTask | _Answer, alone: bool) -> ImageTask:
        """Handle an event and ask the questions that follow from it. Returns the image that it is about."""
        work = event if isinstance(event, ImageTask) else event.work
        try:
            if isinstance(event, ImageTask):
                if work.failure is None and work.known.drop is None:
                    self._ask(work, self._first_questions(work), alone)
                return work
            work.unanswered -= 1
            self._take(work, event.item, event.future.result())
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

    def _ask(self, work: ImageTask, items: list[Item], alone: bool) -> None:
        work.unanswered = len(items)
        # It may be the one that killed an engine: it must not take others with it.
        alone = alone or work.tries > 1
        for item in items:
            future = self._context.batcher.submit(item, priority=PRIORITY, alone=alone)
            work.futures.append(future)
            future.add_done_callback(partial(self._handle_answer, work, item))

    def _handle_answer(self, work: ImageTask, item: Item, future: Future[Output]) -> None:
        """Pass the answer on, quickly: this runs in the batcher's thread."""
        self._events.put(_Answer(work, item, future))

    def _first_questions(self, work: ImageTask) -> list[Item]:
        request, seen = self._request, _require_pixels(work)
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

    def _second_questions(self, work: ImageTask) -> list[Item]:
        if not (self._request.scored and Kind.DESCRIBE in self._request.tasks):
            return []
        return [MatchItem(_require_pixels(work), text) for text in {caption.text for caption in work.captions}]

    def _take(self, work: ImageTask, item: Item, answer: Output) -> None:
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

    def _score(self, work: ImageTask, text: str, score: float) -> None:
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
            model=self._context.models[kind].model,
            revision=self._context.models[kind].revision,
            parameters={name: value for name, value in parameters.items() if value is not None},
            software=f"tuwen {__version__}",
            worker=self._context.worker,
            created_at=datetime.now(UTC),
        )

    def _is_to_be_tried_again(self, work: ImageTask) -> bool:
        if work.failure is None or work.tries >= self._request.max_attempts:
            return False
        return not isinstance(work.failure, TuwenError) or work.failure.retryable

    def _annotation(self, work: ImageTask) -> Annotation:
        """Make the annotation of an image that is done."""
        attempts = work.known.attempts + work.tries
        if work.failure is not None:
            return work.known.model_copy(update={"error": _error(work), "attempts": attempts})
        best, others = _rank(work.captions, self._request)
        known = {"captions": best, "others": others, "recognition": work.recognition, "attempts": attempts}
        annotation = work.known.model_copy(update=known)
        drop = annotation.drop or drop_after_models(self._request.filters, annotation)
        return annotation if drop is None else annotation.model_copy(update={"drop": drop})


def _require_pixels(work: ImageTask) -> Pixels:
    if work.pixels is None:
        raise AssertionError("only images that were decoded are asked about")
    return work.pixels


def _rank(captions: Iterable[Caption], request: DatasetRequest) -> tuple[tuple[Caption, ...], tuple[Caption, ...]]:
    """Return the best caption of each language and style by its score, and the other texts, the best first."""
    best: dict[tuple[str, str], Caption] = {}
    others: dict[tuple[str, str, str], Caption] = {}
    for caption in sorted(captions, key=lambda caption: (caption.score or 0.0, caption.confidence), reverse=True):
        if best.setdefault((caption.language, caption.style), caption).text != caption.text:
            others.setdefault((caption.language, caption.style, caption.text), caption)
    in_order = (best.get(key) for key in product(request.languages, request.styles))
    return tuple(caption for caption in in_order if caption is not None), tuple(others.values())


def _error(work: ImageTask) -> JobError:
    if isinstance(work.failure, TuwenError):
        return JobError(code=work.failure.code, detail=str(work.failure), retryable=work.failure.retryable)
    log.error("image %r failed unexpectedly", work.image.name, exc_info=work.failure)
    return INTERNAL
