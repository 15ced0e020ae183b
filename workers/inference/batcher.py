"""The scheduler in front of the engines: items arrive one by one, engines get whole batches.

    future = batcher.submit(item, priority=5)      # from any thread, at once

It never waits for a batch to fill: whenever an engine is free, it gets a batch of what waits, and the next batch
gathers while it runs. So a bulk run never leaves an engine idle, and never blocks a person for much longer than the
batch that is running. `workers.inference.schedule` decides who goes first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import copy
from itertools import chain, repeat
from queue import SimpleQueue
from typing import Protocol

from tuwen.engine import Item, Output, Partial
from tuwen.errors import EngineCrashed, EngineError, EngineHung, OutOfMemory, TuwenError
from tuwen.jobs import Kind
from workers.inference.schedule import OnBegin, OnProgress, PendingItem, Schedule

RESTART_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before each further attempt to start an engine that would not start; the last one repeats."""

REMEMBERED_LIMITS = 1024
"""Most batch keys whose limit is remembered: clients choose sizes and steps, so there is no end of keys."""

logger = logging.getLogger(__name__)


class Released(Exception):  # not an error: nothing is wrong with the job
    """The batcher is stopping and has not run the item; its job goes back to the queue."""


class BatchEngine(Protocol):
    """The engine that the batcher drives; `workers.inference.process.EngineProcess` implements and explains it."""

    @property
    def alive(self) -> bool:
        """Whether there is a process and it runs."""

    def start(self) -> None:
        """Start and warm the engine. Raises EngineStartFailed."""

    def run(
        self,
        kind: Kind,
        items: Sequence[Item],
        on_progress: Callable[[int, int, Mapping[int, Partial]], None],
        cancelled: Callable[[int], bool],
        watched: Callable[[int], bool],
    ) -> list[Output | TuwenError]:
        """Run one batch. Returns answers in the order of `items`, an error for an item that failed alone."""

    def limit(self, kind: Kind, item: Item) -> int:
        """Return how many items like `item` one batch should hold at most (≥ 1)."""

    def is_warm(self, item: Item) -> bool:
        """Whether the item's model is loaded. Never waits."""

    def stop(self) -> None:
        """End the engine, at once when a batch or a start is under way."""


class Batcher:
    """Puts items from anywhere into batches for a few engines that are all alike.

    Args:
        engines: after `start`, one thread of the batcher drives each of them.
        on_batch: called with `(kind, size, seconds)` after each batch, in those threads.
        on_running: called with the owners of all items that are about to run, before a batch begins, and without
            those of an engine that has no work: whoever reads it after the process has died knows what it died of. The
            batch begins when this returns.
    """

    def __init__(
        self,
        engines: Sequence[BatchEngine],
        on_batch: Callable[[Kind, int, float], None] | None = None,
        on_running: Callable[[Sequence[Hashable]], None] | None = None,
    ):
        self._waiting = Schedule()
        self._running = _RunningOwners(on_running or _ignore_owners)
        # A thread of its own delivers answers: their callbacks take time, and the engine gets its next batch first.
        self._answers: SimpleQueue[tuple[PendingItem, Output | Exception] | None] = SimpleQueue()
        self._delivery = threading.Thread(target=self._deliver, name="batcher-answers", daemon=True)
        self._drivers = [
            _EngineDriver(engine, self._waiting, self._answers, on_batch, self._running) for engine in engines
        ]

    @property
    def reason(self) -> str | None:
        """Why an engine does not run, from a restart that failed until one that succeeds; None while all run."""
        return next((driver.reason for driver in self._drivers if driver.reason is not None), None)

    @property
    def waiting(self) -> int:
        """How many items wait for a batch."""
        return len(self._waiting)

    def start(self) -> None:
        """Start the engines, wait until they are warm, and let items in.

        Raises:
            EngineStartFailed: one of them does not start; then none of them runs.
        """
        with ThreadPoolExecutor(len(self._drivers), "engine-start") as threads:
            starts = [threads.submit(driver.engine.start) for driver in self._drivers]
            done, _ = wait(starts, return_when=FIRST_EXCEPTION)
            if failure := next((start.exception() for start in done if start.exception()), None):
                for driver in self._drivers:
                    driver.engine.stop()
                raise failure
        self._delivery.start()
        for driver in self._drivers:
            driver.thread.start()

    def submit(
        self,
        item: Item,
        priority: int = 5,
        alone: bool = False,
        on_progress: OnProgress | None = None,
        watched: Callable[[], bool] | None = None,
        *,
        on_begin: OnBegin | None = None,
        owner: Hashable = None,
        apart: bool = False,
    ) -> Future[Output]:
        """Have an engine run `item` in some batch.

        Args:
            priority: higher goes first.
            alone: run the item in a batch of its own, because it is suspected of killing the engine.
            on_progress: called with `(step, steps, part)`: the steps of the batch, and the item's partial output where
                it is watched. It runs in the batcher's thread and must not block.
            on_begin: called with the size of the item's batch when that begins to run, each time it does. It must not
                block.
            watched: asked now and then whether somebody wants to see the item's partial output.
            owner: what `on_running` is told of the item; None is not told.
            apart: run the item alone, and while the caller is within `run_apart`.

        Returns:
            The future of the answer. Cancelling it before then takes the item out, or tells the engine that nobody
            waits for it any more. It may raise:

            - Released: the batcher is stopping.
            - EngineCrashed, EngineHung: the engine went down under the item's batch; any item of it may be to blame.
            - OutOfMemory: not even the item alone fits.
            - EngineStartFailed: an engine went down earlier and does not come back; the item is not to blame.
            - TuwenError: what the engine says about this item.
        """
        entry = PendingItem(item, priority, alone, on_progress, watched, on_begin=on_begin, owner=owner, apart=apart)
        if not self._waiting.add(entry):
            entry.settle(Released())
        return entry.future

    @contextmanager
    def run_apart(self, owner: Hashable) -> Iterator[None]:
        """Let no engine run anything within the block but items that are submitted `apart`.

        For work that may take the whole process down: `on_running` is told of `owner` alone, before the block begins.
        """
        with self._waiting.only_apart():
            self._running.be_alone(owner)
            try:
                yield
            finally:
                self._running.be_alone(None)

    def stop(self, grace: float) -> None:
        """Release what waits, let the running batches finish within `grace` seconds, then end the engines.

        A batch that does not finish in time is released too. When this returns, nothing runs and every future is done.
        """
        for entry in self._waiting.close():
            entry.settle(Released())
        if self._delivery.ident is None:  # never started
            return
        deadline = time.monotonic() + grace
        for driver in self._drivers:
            driver.thread.join(max(0.0, deadline - time.monotonic()))
        with ThreadPoolExecutor(len(self._drivers), "engine-stop") as threads:
            list(threads.map(_EngineDriver.end, self._drivers))
        self._answers.put(None)
        self._delivery.join()

    def _deliver(self) -> None:
        while (answer := self._answers.get()) is not None:
            entry, outcome = answer
            entry.settle(outcome)


def _ignore_owners(_owners: Sequence[Hashable]) -> None: ...


class _RunningOwners:
    """Whose items run, on all engines together."""

    def __init__(self, tell: Callable[[Sequence[Hashable]], None]):
        self._tell = tell
        self._lock = threading.Lock()
        self._owners: dict[object, tuple[Hashable, ...]] = {}
        self._told: frozenset[Hashable] = frozenset()

    def begin(self, driver: object, group: Sequence[PendingItem]) -> None:
        """Tell, before they run, whose items are the driver's now."""
        owners = tuple(entry.owner for entry in group if entry.owner is not None)
        with self._lock:
            self._owners[driver] = owners
            self._tell_changes()

    def rest(self, driver: object) -> None:
        """Tell that the driver has nothing to run."""
        with self._lock:
            self._owners.pop(driver, None)
            self._tell_changes()

    def be_alone(self, owner: Hashable) -> None:
        """Tell of this owner, and of none of the batches that are over; of nobody when it is None."""
        with self._lock:
            self._owners = {self: (owner,)} if owner is not None else {}
            self._tell_changes()

    def _tell_changes(self) -> None:
        running = frozenset(owner for owners in self._owners.values() for owner in owners)
        if running == self._told:
            return
        try:
            self._tell(list(running))
            self._told = running
        except Exception:
            logger.exception("nobody could be told what runs")


class _EngineDriver:
    """One engine and the thread that drives it: takes batches out of `waiting`, puts the outcomes into `answers`."""

    def __init__(
        self,
        engine: BatchEngine,
        waiting: Schedule,
        answers: SimpleQueue[tuple[PendingItem, Output | Exception] | None],
        on_batch: Callable[[Kind, int, float], None] | None,
        running: _RunningOwners,
    ):
        self.engine = engine
        self._running = running
        self.thread = threading.Thread(target=self._drive, name="batcher", daemon=True)
        self.reason: str | None = None
        self._waiting = waiting
        self._answers = answers
        self._on_batch = on_batch
        self._limits: dict[Hashable, int] = {}
        self._out_of_grace = False

    def end(self) -> None:
        """End the engine and this thread, even while a batch still runs."""
        self._out_of_grace = self.thread.is_alive()
        self.engine.stop()  # a running batch then ends with EngineCrashed
        self.thread.join()

    # ── in the driver's thread ────────────────────────────────────────────────────────────────────

    def _drive(self) -> None:
        while (leader := self._waiting.take_leader(self.engine.is_warm)) is not None:
            try:
                if not self.engine.alive:
                    self._put_back([leader])
                elif batch := self._gather(leader):
                    self._serve(batch)
                if not self.engine.alive or not self._waiting:
                    self._running.rest(self)
            finally:
                self._waiting.end_turn()
            if not self.engine.alive:
                self._revive()

    def _gather(self, leader: PendingItem) -> list[PendingItem]:
        """Take the leader's batch; an empty list when its limit is unknown or the leader was cancelled."""
        try:
            limit = self._limit(leader)
        except (EngineCrashed, EngineHung) as error:
            if not leader.asked_in_vain:
                # Nothing ran: the engine has died by itself. Should the question itself kill it, the next one tells.
                leader.asked_in_vain = True
                logger.error("the engine went down between two batches: %s", error)
                self._put_back([leader])
            else:
                leader.settle(error)
            return []
        except Exception as error:
            logger.exception("the engine did not say how many items a batch may hold")
            leader.settle(_public_error(error))
            return []
        return [] if leader.future.cancelled() else [leader, *self._waiting.take_followers(leader, limit)]

    def _limit(self, leader: PendingItem) -> int:
        limit = self._limits.pop(leader.limit_key, None) or self.engine.limit(leader.item.kind, leader.item)
        self._limits[leader.limit_key] = limit  # as the last one: the first is the least recently used
        if len(self._limits) > REMEMBERED_LIMITS:
            del self._limits[next(iter(self._limits))]
        return limit

    def _serve(self, batch: list[PendingItem]) -> None:
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

    def _attempt(self, group: list[PendingItem]) -> list[list[PendingItem]]:
        """Run one group and settle its entries, or return the groups to try instead."""
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
            failure = _public_error(error)
        for entry in group:
            self._answer(entry, copy(failure))  # each is raised for itself: raising writes the traceback
        return []

    def _answer(self, entry: PendingItem, outcome: Output | Exception) -> None:
        entry.outcome = outcome
        self._answers.put((entry, outcome))

    def _run(self, group: list[PendingItem]) -> list[Output | TuwenError]:
        def tell(step: int, steps: int, parts: Mapping[int, Partial]) -> None:
            for index, entry in enumerate(group):
                if entry.on_progress is None or entry.future.cancelled():
                    continue
                try:
                    entry.on_progress(step, steps, parts.get(index))
                except Exception:
                    logger.exception("a listener to progress failed")  # the listener's failure is not the batch's
                    entry.on_progress = None

        def cancelled(index: int) -> bool:
            return group[index].future.cancelled()

        def watched(index: int) -> bool:
            return group[index].watched()

        self._running.begin(self, group)
        _tell_begin(group)
        kind = group[0].item.kind
        started = time.perf_counter()
        answers = self.engine.run(kind, [entry.item for entry in group], tell, cancelled, watched)
        seconds = time.perf_counter() - started
        if self._on_batch is None:
            return answers
        try:
            self._on_batch(kind, len(group), seconds)
        except Exception:
            logger.exception("the hook for batches failed")  # the hook's failure is not the batch's
        return answers

    def _put_back(self, group: list[PendingItem]) -> None:
        """Let entries wait again that the engine did not live to run."""
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
                failure = _public_error(error)
                self.reason = str(failure)
                for entry in self._waiting.take_all():
                    entry.settle(copy(failure))
            else:
                self.reason = None
                return


def _tell_begin(group: Sequence[PendingItem]) -> None:
    for entry in group:
        if entry.on_begin is not None:
            try:
                entry.on_begin(len(group))
            except Exception:
                logger.exception("a listener to beginnings failed")  # the listener's failure is not the batch's


def _public_error(error: Exception) -> TuwenError:
    """The error as the item's owner may see it."""
    return error if isinstance(error, TuwenError) else EngineError("the engine failed unexpectedly")
