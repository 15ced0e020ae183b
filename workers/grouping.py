"""Group commit: many threads call for one item, the work is done for many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class _Caller(Generic[A, B]):
    def __init__(self, item: A):
        self.item = item
        self.answer: B | None = None
        self.error: BaseException | None = None
        self.served = False
        self.turn = threading.Event()
        """Set when the caller is served, or is to serve the next group."""


class Grouped(Generic[A, B]):
    """`grouped(item)` answers as `do([item])[0]` would, for the price of a share of one call.

    Never waits on a timer: a caller who finds nobody at work serves all who wait, itself among them,
    and those who come meanwhile are the next group. So a lone caller is served at once, and the more
    callers there are, the larger the groups. An error of `do` is raised in every caller of the group.
    """

    def __init__(self, do: Callable[[Sequence[A]], Sequence[B]]):
        self._do = do
        self._lock = threading.Lock()
        # Guarded by the lock: who waits, and whether somebody is at work.
        self._waiting: list[_Caller[A, B]] = []
        self._busy = False

    def __call__(self, item: A) -> B:
        caller = _Caller[A, B](item)
        with self._lock:
            self._waiting.append(caller)
            first, self._busy = not self._busy, True
        # Each waits for an event of its own: a lock that they took in turn would cost a switch of threads for
        # each of them before the next group could start.
        if not first:
            caller.turn.wait()
        if not caller.served:
            self._serve_all()
        if caller.error is not None:
            raise caller.error
        return caller.answer  # type: ignore[return-value]  # served without error: `do` answered for it

    def _serve_all(self) -> None:
        with self._lock:
            group, self._waiting = self._waiting, []
        self._serve(group)
        with self._lock:
            self._busy = bool(self._waiting)
            successor = self._waiting[:1]
        for caller in successor + group:
            caller.turn.set()

    def _serve(self, group: list[_Caller[A, B]]) -> None:
        try:
            answers = self._do([caller.item for caller in group])
            for caller, answer in zip(group, answers, strict=True):
                caller.answer = answer
        except BaseException as error:  # noqa: BLE001 (each caller raises it)
            for caller in group:
                caller.error = error
        for caller in group:
            caller.served = True
