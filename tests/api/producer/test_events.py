"""What a watcher of a job is told."""

from __future__ import annotations

import asyncio

from api.producer.events import Change, Watch
from tuwen.jobs import Part, Progress, Status


def told(watch: Watch) -> Change | None:
    return asyncio.run(watch.next(0.01))


def test_only_the_latest_progress_is_kept() -> None:
    watch = Watch()
    for step in range(1000):
        watch.tell(Progress(step=step, steps=1000))
    assert told(watch) == Progress(step=999, steps=1000)
    assert told(watch) is None


def test_progress_from_before_a_change_of_state_is_stale() -> None:
    watch = Watch()
    watch.tell(Progress(step=1, steps=2))
    watch.tell(Status.QUEUED)
    watch.tell(Progress(step=0, steps=2))
    assert told(watch) is Status.QUEUED
    assert told(watch) == Progress(step=0, steps=2)
    assert told(watch) is None


def test_a_look_that_finds_what_is_known_is_no_news() -> None:
    watch = Watch()
    watch.tell_if_new(Status.RUNNING)  # the watcher has not even read the row: it will see for itself
    watch.note(Status.RUNNING)
    watch.tell_if_new(Status.RUNNING)
    assert told(watch) is None
    watch.tell_if_new(Status.SUCCEEDED)
    assert told(watch) is Status.SUCCEEDED


def test_parts_that_nobody_has_read_outlive_the_next_progress() -> None:
    watch = Watch()
    watch.tell(Progress(step=1, steps=9, parts=(Part(text="a"), Part(index=1, preview="data:1"))))
    watch.tell(Progress(step=2, steps=9, parts=(Part(text="a cat"),)))
    watch.tell(Progress(step=3, steps=9))
    assert told(watch) == Progress(step=3, steps=9, parts=(Part(text="a cat"), Part(index=1, preview="data:1")))
    watch.tell(Progress(step=4, steps=9))
    assert told(watch) == Progress(step=4, steps=9)
