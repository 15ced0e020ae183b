"""The items that wait for an engine, and the order in which they get one.

Whenever an engine is free, the most urgent waiting item leads its next batch, and items that can share the forward
pass follow it, more urgent ones first, up to the engine's limit. Among items of equal priority, those
whose model is loaded go first, so that models are not swapped for every other job, and then the older ones. One batch
in `PATIENCE` is led by the oldest item of all when it has been passed over that often: the rest moves on under any
stream of urgent work, or of work for another model.

An item that is suspected of taking its whole process down runs apart: no other batch runs on any engine meanwhile.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from itertools import count

from shared.fairness import PATIENCE
from tuwen.engine import Item, Output, Partial

OnProgress = Callable[[int, int, Partial | None], None]
OnBegin = Callable[[int], None]
"""Called with the size of a batch when it begins to run."""


def _never() -> bool:
    return False


class PendingItem:
    """One item and the future of its answer.

    While it waits, the lock of `Schedule` guards it; once taken out, the thread that took it settles it, once.
    """

    def __init__(
        self,
        item: Item,
        priority: int,
        alone: bool,
        on_progress: OnProgress | None = None,
        watched: Callable[[], bool] | None = None,
        *,
        on_begin: OnBegin | None = None,
        owner: Hashable = None,
        apart: bool = False,
    ):
        self.item = item
        self.on_begin = on_begin
        self.owner = owner
        self.apart = apart
        self.priority = priority
        self.on_progress = on_progress
        self.watched = watched or _never
        self.future: Future[Output] = Future()
        self.limit_key: Hashable = (item.kind, item.batch_key)
        self.batch_key: Hashable = (self.limit_key, id(self)) if alone or apart else self.limit_key
        self.number = 0
        """Grows from entry to entry: the smaller, the older."""
        self.batches_before = 0
        """How many batches there had been when this entry arrived."""
        self.asked_in_vain = False
        """Whether an engine went down while it was asked how many such items a batch may hold."""
        self.outcome: Output | Exception | None = None
        """The outcome of the engine's last attempt."""

    def settle(self, outcome: Output | Exception) -> None:
        """Set the future's result and run its callbacks, in this thread."""
        with suppress(InvalidStateError):  # cancelled meanwhile: nobody wants the answer
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)


class Schedule:
    """Entries from anywhere, taken out batch by batch by any number of engines' threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrival = threading.Condition(self._lock)
        self._quiet = threading.Condition(self._lock)
        self.closed = threading.Event()
        """Set for good by `close`, with the lock held."""
        # All guarded by the lock. The oldest first; none is added once it is closed.
        self._entries: list[PendingItem] = []
        self._numbers = count()
        self._batches = 0
        self._last_turn_of_the_oldest = 0
        self._idle = 0
        self._running = 0
        self._apart = False

    def __len__(self) -> int:
        return sum(not entry.future.cancelled() for entry in self._entries)

    def add(self, entry: PendingItem) -> bool:
        """Add an entry; returns False when this is closed."""
        with self._lock:
            if self.closed.is_set():
                return False
            entry.number, entry.batches_before = next(self._numbers), self._batches
            self._entries.append(entry)
            self._arrival.notify()
            return True

    def put_back(self, entries: Iterable[PendingItem]) -> bool:
        """Put entries that were taken out back into their old places; returns False when this is closed."""
        with self._lock:
            if self.closed.is_set():
                return False
            self._entries = sorted([*self._entries, *entries], key=lambda entry: entry.number)
            self._arrival.notify_all()
            return True

    def take_all(self) -> list[PendingItem]:
        """Take out all entries."""
        with self._lock:
            taken, self._entries = self._entries, []
            return taken

    def close(self) -> list[PendingItem]:
        """Accept no more entries; returns those that waited."""
        with self._lock:
            self.closed.set()
            self._arrival.notify_all()
            self._quiet.notify_all()
        return self.take_all()

    def take_leader(self, is_warm: Callable[[Item], bool]) -> PendingItem | None:
        """Wait for work; take out the entry whose batch is next on an engine with these warm models.

        None when it is closed. Otherwise `end_turn` is to be called when the batch is over.
        """
        with self._lock:
            self._idle += 1
            while not self._takeable() and not self.closed.is_set():
                self._arrival.wait()
            self._idle -= 1
            if self.closed.is_set():
                return None
            leader = self._first(is_warm)
            self._entries.remove(leader)
            self._running += 1
            return leader

    def end_turn(self) -> None:
        """Note that the batch of a leader is over."""
        with self._lock:
            self._running -= 1
            self._quiet.notify_all()

    @contextmanager
    def only_apart(self) -> Iterator[None]:
        """Wait until no batch runs; within the block only entries that run apart are taken out."""
        with self._lock:
            # One after the other. When it is closed, no entry is taken out any more.
            self._quiet.wait_for(lambda: not self._apart)
            self._apart = True
            self._quiet.wait_for(lambda: self._running == 0 or self.closed.is_set())
        try:
            yield
        finally:
            with self._lock:
                self._apart = False
                self._quiet.notify_all()
                self._arrival.notify_all()

    def take_followers(self, leader: PendingItem, limit: int) -> list[PendingItem]:
        """Take out the entries that share the leader's batch of at most `limit` items; idle engines keep a fair
        share."""
        with self._lock:
            followers = [entry for entry in self._drop_cancelled() if entry.batch_key == leader.batch_key]
            followers.sort(key=lambda entry: -entry.priority)  # stable: the older first
            fair = math.ceil((1 + len(followers)) / (1 + self._idle))
            taken = followers[: min(limit, fair) - 1]
            gone = set(taken)
            self._batches += 1
            self._entries = [entry for entry in self._entries if entry not in gone]
            return taken

    def _first(self, is_warm: Callable[[Item], bool]) -> PendingItem:
        entries = self._takeable()
        oldest = entries[0]
        if self._batches - max(oldest.batches_before, self._last_turn_of_the_oldest) >= PATIENCE:
            self._last_turn_of_the_oldest = self._batches
            return oldest
        # max takes the first of equal ones, which is the oldest.
        return max(entries, key=lambda entry: (entry.priority, is_warm(entry.item)))

    def _takeable(self) -> Sequence[PendingItem]:
        wanted = self._drop_cancelled()
        return [entry for entry in wanted if entry.apart] if self._apart else wanted

    def _drop_cancelled(self) -> Sequence[PendingItem]:
        self._entries = [entry for entry in self._entries if not entry.future.cancelled()]
        return self._entries
