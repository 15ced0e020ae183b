"""The scheduler in front of the engine: items come one by one from anywhere, the engine is given whole batches.

    future = batcher.submit(item, priority=5)      # from any thread, at once

It never waits for a batch to fill. Whenever the engine is free, the most urgent waiting item leads the next batch, and
items that can share its forward pass ride along, more urgent ones first, up to the engine's limit; while the engine
runs, the next batch gathers. So a bulk run never leaves the engine idle, and never blocks a person for much longer
than the batch that is running. Of equal priority items go first whose model is loaded, so that models are not swapped
for every other job, and of those the older; and one batch in `PATIENCE` is led by the oldest item of all when it has
been passed over that often: under any stream of urgent work, or work for another model, all the rest moves on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from copy import copy
from itertools import chain, count, repeat
from queue import SimpleQueue
from typing import Protocol

from shared.errors import EngineCrashed, EngineError, EngineHung, OutOfMemory, TuwenError
from shared.jobs import Kind
from workers.engines.base import Item, Output

PATIENCE = 8
"""Batches that an item may be passed over before it leads one, whatever its priority."""

RESTART_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before each further attempt to start an engine that would not start; the last one repeats."""

REMEMBERED_LIMITS = 1024
"""Batch keys whose limit is remembered; clients choose sizes and steps, so the keys have no end."""

logger = logging.getLogger(__name__)


class Released(Exception):  # not an error: nothing is wrong with the job
    """The batcher is stopping and has not run the item; its job goes back to the queue."""


class BatchEngine(Protocol):
    """What the batcher drives: `workers.engine.EngineProcess` explains each."""

    @property
    def alive(self) -> bool: ...

    def start(self) -> None: ...

    def run(
        self,
        kind: Kind,
        items: Sequence[Item],
        on_progress: Callable[[int, int], None],
        cancelled: Callable[[int], bool],
    ) -> list[Output | TuwenError]: ...

    def limit(self, kind: Kind, item: Item) -> int: ...

    def is_warm(self, item: Item) -> bool: ...

    def stop(self) -> None: ...


class _Entry:
    """One item and the future of its answer.

    While it is in `Batcher._waiting`, the batcher's lock guards it; once taken out, whoever took it settles it, once.
    """

    def __init__(self, item: Item, priority: int, alone: bool, on_progress: Callable[[int, int], None] | None):
        self.item = item
        self.priority = priority
        self.on_progress = on_progress
        self.future: Future[Output] = Future()
        self.limit_key: Hashable = (item.kind, item.batch_key)
        self.batch_key: Hashable = (self.limit_key, id(self)) if alone else self.limit_key
        self.number = 0
        """Grows from entry to entry: the smaller, the older."""
        self.batches_before = 0
        """How many batches there had been when this entry came."""
        self.outcome: Output | Exception | None = None
        """What the engine's last attempt came to."""

    def settle(self, outcome: Output | Exception) -> None:
        """Set the future's answer and run what hangs on it, in this thread."""
        with suppress(InvalidStateError):  # cancelled meanwhile: nobody wants the answer
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)


class Batcher:
    """Puts items from anywhere into batches for one engine.

    Args:
        engine: driven by one thread of the batcher alone, after `start`.
        on_batch: told `(kind, size, seconds)` after each batch, from that thread.
    """

    def __init__(self, engine: BatchEngine, on_batch: Callable[[Kind, int, float], None] | None = None):
        self._engine = engine
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._arrival = threading.Condition(self._lock)
        # Guarded by the lock: the waiting entries, the oldest first. None is added once `_stopping` is set.
        self._waiting: list[_Entry] = []
        self._stopping = threading.Event()
        self._out_of_grace = False
        self._numbers = count()
        # Written by the dispatcher alone.
        self._limits: dict[Hashable, int] = {}
        self._batches = 0
        self._last_turn_of_the_oldest = 0
        self._dispatcher = threading.Thread(target=self._dispatch, name="batcher", daemon=True)
        # Whoever waits for an answer does something with it at once; the engine has its next batch first.
        self._answers: SimpleQueue[tuple[_Entry, Output | Exception] | None] = SimpleQueue()
        self._postman = threading.Thread(target=self._deliver, name="batcher-answers", daemon=True)
        self.reason: str | None = None
        """Why the engine does not run, while it does not."""

    @property
    def healthy(self) -> bool:
        """False from a restart of the engine that failed until one that succeeds."""
        return self.reason is None

    @property
    def waiting(self) -> int:
        """How many items wait for a batch."""
        return sum(not entry.future.cancelled() for entry in self._waiting)

    def start(self) -> None:
        """Start the engine, wait until it is warm, and let items in.

        Raises:
            EngineStartFailed: the engine cannot be had; nothing was started.
        """
        self._engine.start()
        self._postman.start()
        self._dispatcher.start()

    def submit(
        self,
        item: Item,
        priority: int = 5,
        alone: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Future[Output]:
        """Have the engine run `item` in some batch.

        Args:
            priority: higher goes first.
            alone: share the batch with nobody, for an item that is suspected of killing the engine.
            on_progress: told `(step, steps)` of the batch, in the batcher's thread: it must not block.

        Returns:
            The future of the answer. Until that is there, cancelling it takes the item out, or tells the engine
            that nobody waits for it any more. It may raise:

            - Released: the batcher is stopping.
            - EngineCrashed, EngineHung: the engine went down under the item's batch; any item of it may be to blame.
            - OutOfMemory: not even the item alone fits.
            - EngineStartFailed: the engine went down earlier and does not come back; the item is not to blame.
            - TuwenError: what the engine says about this item.
        """
        entry = _Entry(item, priority, alone, on_progress)
        with self._lock:
            stopping = self._stopping.is_set()
            if not stopping:
                entry.number, entry.batches_before = next(self._numbers), self._batches
                self._waiting.append(entry)
                self._arrival.notify()
        if stopping:
            entry.settle(Released())
        return entry.future

    def stop(self, grace: float) -> None:
        """Release what waits, let the running batch finish within `grace` seconds, then end the engine.

        A batch that does not finish in time is released too. When this returns, nothing runs and every future is done.
        """
        with self._lock:
            self._stopping.set()
            released, self._waiting = self._waiting, []
            self._arrival.notify()
        for entry in released:
            entry.settle(Released())
        if self._dispatcher.ident is None:  # never started
            return
        self._dispatcher.join(grace)
        self._out_of_grace = self._dispatcher.is_alive()
        self._engine.stop()  # under the dispatcher's hands, if need be: its batch then ends with EngineCrashed
        self._dispatcher.join()
        self._answers.put(None)
        self._postman.join()

    def _deliver(self) -> None:
        while (answer := self._answers.get()) is not None:
            entry, outcome = answer
            entry.settle(outcome)

    # ── the dispatcher's thread ───────────────────────────────────────────────────────────────────

    def _dispatch(self) -> None:
        while (leader := self._next_leader()) is not None:
            if self._engine.alive and (batch := self._gather(leader)):
                self._batches += 1
                self._serve(batch)
            if not self._engine.alive:
                self._revive()

    def _next_leader(self) -> _Entry | None:
        """Wait for work; the entry whose batch is next, left where it is. None when the batcher stops."""
        with self._lock:
            while not self._wanted():
                if self._stopping.is_set():
                    return None
                self._arrival.wait()
            oldest = self._waiting[0]
            if self._batches - max(oldest.batches_before, self._last_turn_of_the_oldest) >= PATIENCE:
                self._last_turn_of_the_oldest = self._batches
                return oldest
            # Of equals the first, which is the oldest.
            return max(self._waiting, key=lambda entry: (entry.priority, self._engine.is_warm(entry.item)))

    def _wanted(self) -> list[_Entry]:
        """Who still waits, with the lock held."""
        self._waiting = [entry for entry in self._waiting if not entry.future.cancelled()]
        return self._waiting

    def _gather(self, leader: _Entry) -> list[_Entry]:
        """Take the leader and those that ride along out of the waiting ones."""
        try:
            limit = self._limit(leader)
        except Exception as error:
            logger.exception("the engine did not say how many items a batch may hold")
            with self._lock:
                self._waiting = [entry for entry in self._waiting if entry is not leader]
            leader.settle(_told_outside(error))
            return []
        with self._lock:
            if leader not in self._wanted():  # cancelled or released meanwhile
                return []
            riders = [entry for entry in self._waiting if entry.batch_key == leader.batch_key and entry is not leader]
            riders.sort(key=lambda entry: -entry.priority)  # stable: the older first
            batch = [leader, *riders[: limit - 1]]
            taken = set(batch)
            self._waiting = [entry for entry in self._waiting if entry not in taken]
            return batch

    def _limit(self, leader: _Entry) -> int:
        limit = self._limits.pop(leader.limit_key, None) or self._engine.limit(leader.item.kind, leader.item)
        self._limits[leader.limit_key] = limit  # as the last one: the first is the least recently used
        if len(self._limits) > REMEMBERED_LIMITS:
            del self._limits[next(iter(self._limits))]
        return limit

    def _serve(self, batch: list[_Entry]) -> None:
        """Run a batch, in smaller groups where it does not work as a whole, until each entry is settled or put back."""
        key = batch[0].limit_key
        limit_before = self._limits[key]
        groups = [batch]
        while groups:
            group = [entry for entry in groups.pop() if not entry.future.cancelled()]
            limit = self._limits[key]
            if not group:
                continue
            if not self._engine.alive:
                self._put_back(group)
            elif len(group) > limit:
                groups += [group[limit:], group[:limit]]
            else:
                groups += self._attempt(group)
        if any(isinstance(entry.outcome, OutOfMemory) for entry in batch):
            # It did not even fit alone: that item was too big, not the batches.
            self._limits[key] = limit_before

    def _attempt(self, group: list[_Entry]) -> list[list[_Entry]]:
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

    def _answer(self, entry: _Entry, outcome: Output | Exception) -> None:
        entry.outcome = outcome
        self._answers.put((entry, outcome))

    def _run(self, group: list[_Entry]) -> list[Output | TuwenError]:
        def tell(step: int, steps: int) -> None:
            for entry in group:
                if entry.on_progress is None or entry.future.cancelled():
                    continue
                try:
                    entry.on_progress(step, steps)
                except Exception:
                    logger.exception("a listener to progress failed")  # its own trouble, too
                    entry.on_progress = None

        def cancelled(index: int) -> bool:
            return group[index].future.cancelled()

        kind = group[0].item.kind
        started = time.perf_counter()
        answers = self._engine.run(kind, [entry.item for entry in group], tell, cancelled)
        seconds = time.perf_counter() - started
        if self._on_batch is None:
            return answers
        try:
            self._on_batch(kind, len(group), seconds)
        except Exception:
            logger.exception("the hook for batches failed")  # its own trouble: the batch has not
        return answers

    def _put_back(self, group: list[_Entry]) -> None:
        """Let entries wait again whose turn the engine did not live to see."""
        with self._lock:
            if not self._stopping.is_set():
                self._waiting = sorted([*self._waiting, *group], key=lambda entry: entry.number)
                return
        for entry in group:
            entry.settle(Released())

    def _revive(self) -> None:
        """Start the engine again, for as long as it takes. Each attempt that fails also fails the items that wait."""
        for pause in chain(RESTART_PAUSES, repeat(RESTART_PAUSES[-1])):
            if self._stopping.wait(pause):
                return
            try:
                self._engine.start()
            except Exception as error:
                logger.exception("the engine does not start again")
                failure = _told_outside(error)
                self.reason = str(failure)
                with self._lock:
                    failed, self._waiting = self._waiting, []
                for entry in failed:
                    entry.settle(copy(failure))
            else:
                self.reason = None
                return


def _told_outside(error: Exception) -> TuwenError:
    """The error as the item's owner may see it."""
    return error if isinstance(error, TuwenError) else EngineError("the engine failed unexpectedly")
