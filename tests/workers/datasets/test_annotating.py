"""The way of a shard's images through reading, the batcher and the ranking; only the engine is played by the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.database.workers import ServedModel
from shared.leasing.endings import Stopped
from shared.settings import Settings
from tests.support.waiting import PATIENT, eventually
from tuwen.annotations import Annotation
from tuwen.datasets import DatasetRequest
from tuwen.engine import DescribeItem, MatchItem
from tuwen.errors import EngineStartFailed, FetchFailed, FetchRefused
from tuwen.jobs import DescribeResult, Kind, MatchResult
from workers.datasets.annotating import Annotating, AnnotationContext, Window
from workers.datasets.sources import HeldAs, SourceImage
from workers.inference.batcher import Batcher

MODELS = {kind: ServedModel(f"the {kind} model", "1") for kind in Kind}


class Words:
    """Captions name language, style and seed; a caption's score is by its last letter. Remembers the batches."""

    alive = True

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self.gate.set()

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def limit(self, kind: Kind, item: Any) -> int:
        return 4

    def is_warm(self, item: Any) -> bool:
        return True

    def run(self, kind: Kind, items: Sequence[Any], *_: Any) -> list[Any]:
        self.gate.wait(PATIENT)
        self.batches.append(list(items))
        return [self.answer(item) for item in items]

    def answer(self, item: Any) -> Any:
        if isinstance(item, MatchItem):
            return MatchResult(score=(ord(item.text[-1]) - 40) / 100)
        text = f"{item.language} {item.style} {(item.seed or 0) % 3}"
        return DescribeResult(text=text, language=item.language, confidence=0.5, tokens=3)


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
def batcher(words: Words) -> Iterator[Batcher]:
    batcher = Batcher([words])
    batcher.start()
    yield batcher
    words.gate.set()
    batcher.stop(1)


def png(side: int = 8) -> bytes:
    file = BytesIO()
    Image.new("RGB", (side, side), "white").save(file, "PNG")
    return file.getvalue()


def image(name: str) -> SourceImage:
    return SourceImage(name, name, HeldAs.FILE)


class Shard:
    """Takes the part of `workers.datasets.shards`."""

    def __init__(self, batcher: Batcher, read: Callable[[SourceImage], bytes] = lambda _: png(), **wishes: Any):
        request = DatasetRequest(source="/s", destination="/d", **wishes)
        context = AnnotationContext(Settings(), batcher, MODELS, "w")
        self.ended: dict[int, Annotation] = {}
        self.annotating = Annotating(context, request, read, self._end, remote=False)

    def _end(self, index: int, annotation: Annotation) -> None:
        assert index not in self.ended, "an image ends once"
        self.ended[index] = annotation

    def run(self, count: int, **how: Any) -> dict[int, Annotation]:
        images = [(n, image(str(n)), Annotation(name=str(n), attempts=0)) for n in range(count)]
        try:
            self.annotating.run(images, tick=lambda: None, **how)
        finally:
            self.annotating.close()
        return self.ended


def test_the_best_of_each_language_and_style_is_kept_and_the_others_listed(batcher: Batcher) -> None:
    shard = Shard(batcher, languages=("zh", "en"), styles=("short", "tags"), candidates=4)
    [annotation] = shard.run(1).values()
    kept = [(caption.language, caption.style, caption.text[-1]) for caption in annotation.captions]
    assert kept == [("zh", "short", "2"), ("zh", "tags", "2"), ("en", "short", "2"), ("en", "tags", "2")]
    assert all(caption.score == 0.1 for caption in annotation.captions)
    others = [caption.text for caption in annotation.others if (caption.language, caption.style) == ("en", "tags")]
    assert others == ["en tags 1", "en tags 0"], "the best first, and none twice"


def test_the_first_candidate_is_the_most_probable_text(batcher: Batcher, words: Words) -> None:
    Shard(batcher, candidates=3).run(1)
    seeds = [item.seed for batch in words.batches for item in batch if isinstance(item, DescribeItem)]
    assert sorted(seeds, key=str) == [1, 2, None]


def test_what_is_equal_is_scored_once(batcher: Batcher, words: Words) -> None:
    Shard(batcher, candidates=6).run(1)
    scored = [item.text for batch in words.batches for item in batch if isinstance(item, MatchItem)]
    assert sorted(scored) == ["en short 0", "en short 1", "en short 2"]


def test_images_share_batches_and_go_behind_every_job(batcher: Batcher, words: Words) -> None:
    words.gate.clear()
    shard = Shard(batcher)
    running = threading.Thread(target=lambda: shard.run(20))
    running.start()
    eventually(lambda: batcher.waiting >= 16)
    job = batcher.submit(DescribeItem(np.zeros((8, 8, 3), np.uint8), "zh"), priority=0)
    words.gate.set()
    job.result(PATIENT)
    running.join(PATIENT)
    assert len(shard.ended) == 20
    batch_of_the_job = next(n for n, batch in enumerate(words.batches) if any(item.language == "zh" for item in batch))
    assert batch_of_the_job <= 1, "the next one after that which was running"
    assert len(words.batches[batch_of_the_job]) == 4, "images fill the rest of it"


def test_what_may_pass_is_tried_again_and_what_will_not_is_not(batcher: Batcher) -> None:
    reads: dict[str, int] = {}

    def read(image: SourceImage) -> bytes:
        reads[image.name] = reads.get(image.name, 0) + 1
        if image.name == "0" and reads["0"] < 2:
            raise FetchFailed("it did not answer")
        if image.name == "1":
            raise FetchFailed("it never answers")
        if image.name == "2":
            raise FetchRefused("it is not there")
        return png()

    ended = Shard(batcher, read, max_attempts=2).run(4)
    assert reads == {"0": 2, "1": 2, "2": 1, "3": 1}
    assert {index: each.attempts for index, each in ended.items()} == {0: 2, 1: 2, 2: 1, 3: 1}
    assert [ended[index].ok for index in range(4)] == [True, False, False, True]
    assert ended[1].error is not None
    assert (ended[1].error.code, ended[1].error.retryable) == ("fetch_failed", True)


def test_what_nobody_foresaw_is_an_error_of_its_image_alone(batcher: Batcher) -> None:
    def read(image: SourceImage) -> bytes:
        if image.name == "1":
            raise ZeroDivisionError("secret")
        return png()

    ended = Shard(batcher, read, max_attempts=1).run(3)
    assert ended[1].error is not None
    assert (ended[1].error.code, "secret" in ended[1].error.detail) == ("internal_error", False)
    assert ended[0].ok
    assert ended[2].ok


def test_stop_ends_it_soon(batcher: Batcher, words: Words) -> None:
    words.gate.clear()
    shard = Shard(batcher)
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            shard.run(50)
        except Stopped as stopped:
            outcome.append(stopped)

    running = threading.Thread(target=run)
    running.start()
    eventually(lambda: batcher.waiting > 0)
    shard.annotating.stop()
    running.join(PATIENT)
    assert len(outcome) == 1
    words.gate.set()


def test_a_batcher_that_stops_gives_the_shard_back(batcher: Batcher, words: Words) -> None:
    words.gate.clear()
    shard = Shard(batcher)
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            shard.run(50)
        except (Stopped, EngineStartFailed) as stopped:
            outcome.append(stopped)

    running = threading.Thread(target=run)
    running.start()
    eventually(lambda: batcher.waiting > 0)
    threading.Timer(0.2, words.gate.set).start()
    batcher.stop(5)
    running.join(PATIENT)
    assert isinstance(outcome[0], Stopped)


def test_memory_for_pixels_is_bounded() -> None:
    window = Window(100)
    window.enter(60)
    entered = threading.Event()

    def second() -> None:
        window.enter(60)
        entered.set()

    waiting = threading.Thread(target=second)
    waiting.start()
    assert not entered.wait(0.1)
    window.leave(60)
    assert entered.wait(PATIENT)
    window.leave(60)
    window.enter(1000)  # larger than all there is, but alone
    window.close()
    with pytest.raises(Stopped):
        window.enter(1)
    waiting.join()
