"""The scheduler in front of the engines: items come one by one from anywhere, an engine is given whole batches.

    future = batcher.submit(item, priority=5)      # from any thread, at once

It never waits for a batch to fill: whenever an engine is free, it gets one of what is there, and while it runs, the
next one gathers. So a bulk run never leaves an engine idle, and never blocks a person for much longer than the batch
that is running. Who goes first is the business of `workers.inference.waiting`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from copy import copy
from itertools import chain, repeat
from queue import SimpleQueue
from typing import Protocol

from tuwen.engine import Item, Output, Partial
from tuwen.errors import EngineCrashed, EngineError, EngineHung, OutOfMemory, TuwenError
from tuwen.jobs import Kind
from workers.inference.waiting import Entry, OnProgress, Waiting

RESTART_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before each further attempt to start an engine that would not start; the last one repeats."""

REMEMBERED_LIMITS = 1024
"""Batch keys whose limit is remembered; clients choose sizes and steps, so the keys have no end."""

logger = logging.getLogger(__name__)


class Released(Exception):  # not an error: nothing is wrong with the job
    """The batcher is stopping and has not run the item; its job goes back to the queue."""


class BatchEngine(Protocol):
    """What the batcher drives: `workers.inference.process.EngineProcess` explains each."""

    @property
    def alive(self) -> bool: ...

    def start(self) -> None: ...

    def run(
        self,
        kind: Kind,
        items: Sequence[Item],
        on_progress: Callable[[int, int, Mapping[int, Partial]], None],
        cancelled: Callable[[int], bool],
        watched: Callable[[int], bool],
    ) -> list[Output | TuwenError]: ...

    def limit(self, kind: Kind, item: Item) -> int: ...

    def is_warm(self, item: Item) -> bool: ...

    def stop(self) -> None: ...


class Batcher:
    """Puts items from anywhere into batches for a few engines that are all alike.

    Args:
        engines: each is driven by one thread of the batcher alone, after `start`.
        on_batch: told `(kind, size, seconds)` after each batch, from those threads.
    """

    def __init__(self, engines: Sequence[BatchEngine], on_batch: Callable[[Kind, int, float], None] | None = None):
        self._waiting = Waiting()
        # Whoever waits for an answer does something with it at once; the engine has its next batch first.
        self._answers: SimpleQueue[tuple[Entry, Output | Exception] | None] = SimpleQueue()
        self._postman = threading.Thread(target=self._deliver, name="batcher-answers", daemon=True)
        self._lanes = [_Lane(engine, self._waiting, self._answers, on_batch) for engine in engines]

    @property
    def reason(self) -> str | None:
        """Why an engine does not run, while one does not."""
        return next((lane.reason for lane in self._lanes if lane.reason is not None), None)

    @property
    def healthy(self) -> bool:
        """False from a restart of an engine that failed until one that succeeds."""
        return self.reason is None

    @property
    def waiting(self) -> int:
        """How many items wait for a batch."""
        return len(self._waiting)

    def start(self) -> None:
        """Start the engines, wait until they are warm, and let items in.

        Raises:
            EngineStartFailed: one of them cannot be had; none was started.
        """
        with ThreadPoolExecutor(len(self._lanes), "engine-start") as threads:
            starts = [threads.submit(lane.engine.start) for lane in self._lanes]
            done, _ = wait(starts, return_when=FIRST_EXCEPTION)
            if failure := next((start.exception() for start in done if start.exception()), None):
                for lane in self._lanes:
                    lane.engine.stop()
                raise failure
        self._postman.start()
        for lane in self._lanes:
            lane.thread.start()

    def submit(
        self,
        item: Item,
        priority: int = 5,
        alone: bool = False,
        on_progress: OnProgress | None = None,
        watched: Callable[[], bool] | None = None,
    ) -> Future[Output]:
        """Have an engine run `item` in some batch.

        Args:
            priority: higher goes first.
            alone: share the batch with nobody, for an item that is suspected of killing the engine.
            on_progress: told `(step, steps, part)`, the steps of the batch and what there is of the item where it is
                watched, in the batcher's thread: it must not block.
            watched: asked now and then whether somebody would like to see what there is of the item so far.

        Returns:
            The future of the answer. Until that is there, cancelling it takes the item out, or tells the engine
            that nobody waits for it any more. It may raise:

            - Released: the batcher is stopping.
            - EngineCrashed, EngineHung: the engine went down under the item's batch; any item of it may be to blame.
            - OutOfMemory: not even the item alone fits.
            - EngineStartFailed: an engine went down earlier and does not come back; the item is not to blame.
            - TuwenError: what the engine says about this item.
        """
        entry = Entry(item, priority, alone, on_progress, watched)
        if not self._waiting.add(entry):
            entry.settle(Released())
        return entry.future

    def stop(self, grace: float) -> None:
        """Release what waits, let the running batches finish within `grace` seconds, then end the engines.

        A batch that does not finish in time is released too. When this returns, nothing runs and every future is done.
        """
        for entry in self._waiting.close():
            entry.settle(Released())
        if self._postman.ident is None:  # never started
            return
        deadline = time.monotonic() + grace
        for lane in self._lanes:
            lane.thread.join(max(0.0, deadline - time.monotonic()))
        with ThreadPoolExecutor(len(self._lanes), "engine-stop") as threads:
            list(threads.map(_Lane.end, self._lanes))
        self._answers.put(None)
        self._postman.join()

    def _deliver(self) -> None:
        while (answer := self._answers.get()) is not None:
            entry, outcome = answer
            entry.settle(outcome)


class _Lane:
    """One engine and the thread that drives it: takes batches out of `waiting`, puts the outcomes into `answers`."""

    def __init__(
        self,
        engine: BatchEngine,
        waiting: Waiting,
        answers: SimpleQueue[tuple[Entry, Output | Exception] | None],
        on_batch: Callable[[Kind, int, float], None] | None,
    ):
        self.engine = engine
        self.thread = threading.Thread(target=self._drive, name="batcher", daemon=True)
        self.reason: str | None = None
        self._waiting = waiting
        self._answers = answers
        self._on_batch = on_batch
        self._limits: dict[Hashable, int] = {}
        self._out_of_grace = False

    def end(self) -> None:
        """End the engine, under the hands of a batch that still runs, and with it the thread."""
        self._out_of_grace = self.thread.is_alive()
        self.engine.stop()  # a running batch then ends with EngineCrashed
        self.thread.join()

    # ── in the lane's thread ──────────────────────────────────────────────────────────────────────

    def _drive(self) -> None:
        while (leader := self._waiting.next_leader(self.engine.is_warm)) is not None:
            if not self.engine.alive:
                self._put_back([leader])
            elif batch := self._gather(leader):
                self._serve(batch)
            if not self.engine.alive:
                self._revive()

    def _gather(self, leader: Entry) -> list[Entry]:
        """The leader's batch; none when nobody knows how large that may be, or the leader is not wanted any more."""
        try:
            limit = self._limit(leader)
        except Exception as error:
            logger.exception("the engine did not say how many items a batch may hold")
            leader.settle(_told_outside(error))
            return []
        return [] if leader.future.cancelled() else [leader, *self._waiting.riders(leader, limit)]

    def _limit(self, leader: Entry) -> int:
        limit = self._limits.pop(leader.limit_key, None) or self.engine.limit(leader.item.kind, leader.item)
        self._limits[leader.limit_key] = limit  # as the last one: the first is the least recently used
        if len(self._limits) > REMEMBERED_LIMITS:
            del self._limits[next(iter(self._limits))]
        return limit

    def _serve(self, batch: list[Entry]) -> None:
        """Run a batch, in smaller groups where it does not work as a whole, until each entry is settled or put back."""
        key = batch[0].limit_key
        limit_before = self._limits[key]
        groups = [batch]
        while groups:
            group = [entry for entry in groups.pop() if not entry.future.cancelled()]
            limit = self._limits[key]
            if not group:
                continue
            if not self.engine.alive:
                self._put_back(group)
            elif len(group) > limit:
                groups += [group[limit:], group[:limit]]
            else:
                groups += self._attempt(group)
        if any(isinstance(entry.outcome, OutOfMemory) for entry in batch):
            # It did not even fit alone: that item was too big, not the batches.
            self._limits[key] = limit_before

    def _attempt(self, group: list[Entry]) -> list[list[Entry]]:
        """Run one group and settle its entries, or answer the groups to try instead."""
        failure: Exception
        try:
            for entry, answer in list(zip(group, self._run(group), strict=True)):
                self._answer(entry, answer)
            return []
        except OutOfMemory as error:
            if len(group) > 1:
                self._limits[group[0].limit_key] = half = (len(group) + 1) // 2
                logger.warning("%d items of %s do not fit into memory, %d may", len(group), group[0].limit_key, half)
                return [group]
            failure = error
        except (EngineCrashed, EngineHung) as error:
            failure = Released() if self._out_of_grace else error
            logger.error("a batch of %d for %s ended with: %s", len(group), group[0].item.kind.value, error)
        except Exception as error:
            if not isinstance(error, TuwenError):
                logger.exception("a batch failed unexpectedly")
            if len(group) > 1:
                return [[entry] for entry in reversed(group)]
            failure = _told_outside(error)
        for entry in group:
            self._answer(entry, copy(failure))  # each is raised for itself: raising writes the traceback
        return []

    def _answer(self, entry: Entry, outcome: Output | Exception) -> None:
        entry.outcome = outcome
        self._answers.put((entry, outcome))

    def _run(self, group: list[Entry]) -> list[Output | TuwenError]:
        def tell(step: int, steps: int, parts: Mapping[int, Partial]) -> None:
            for index, entry in enumerate(group):
                if entry.on_progress is None or entry.future.cancelled():
                    continue
                try:
                    entry.on_progress(step, steps, parts.get(index))
                except Exception:
                    logger.exception("a listener to progress failed")  # its own trouble, too
                    entry.on_progress = None

        def cancelled(index: int) -> bool:
            return group[index].future.cancelled()

        def watched(index: int) -> bool:
            return group[index].watched()

        kind = group[0].item.kind
        started = time.perf_counter()
        answers = self.engine.run(kind, [entry.item for entry in group], tell, cancelled, watched)
        seconds = time.perf_counter() - started
        if self._on_batch is None:
            return answers
        try:
            self._on_batch(kind, len(group), seconds)
        except Exception:
            logger.exception("the hook for batches failed")  # its own trouble: the batch has not
        return answers

    def _put_back(self, group: list[Entry]) -> None:
        """Let entries wait again whose turn the engine did not live to see."""
        if not self._waiting.put_back(group):
            for entry in group:
                entry.settle(Released())

    def _revive(self) -> None:
        """Start the engine again, for as long as it takes. Each attempt that fails also fails the items that wait."""
        for pause in chain(RESTART_PAUSES, repeat(RESTART_PAUSES[-1])):
            if self._waiting.closed.wait(pause):
                return
            try:
                self.engine.start()
            except Exception as error:
                logger.exception("the engine does not start again")
                failure = _told_outside(error)
                self.reason = str(failure)
                for entry in self._waiting.take_all():
                    entry.settle(copy(failure))
            else:
                self.reason = None
                return


def _told_outside(error: Exception) -> TuwenError:
    """The error as the item's owner may see it."""
    return error if isinstance(error, TuwenError) else EngineError("the engine failed unexpectedly")
