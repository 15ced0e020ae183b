"""Group commit: many threads call for one item, the work is done for many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


@dataclass(slots=True, eq=False)
class _Caller(Generic[A, B]):
    item: A
    answer: B | None = None
    error: BaseException | None = None
    served: bool = False


class Grouped(Generic[A, B]):
    """`grouped(item)` answers as `do([item])[0]` would, for the price of a share of one call.

    Never waits on a timer: a caller who finds nobody at work serves all who wait, itself among them,
    and those who come meanwhile are the next group. So a lone caller is served at once, and the more
    callers there are, the larger the groups. An error of `do` is raised in every caller of the group.
    """

    def __init__(self, do: Callable[[Sequence[A]], Sequence[B]]):
        self._do = do
        self._waiting: list[_Caller[A, B]] = []
        self._door = threading.Lock()
        """Guards `_waiting`."""
        self._work = threading.Lock()
        """Held by the caller who serves."""

    def __call__(self, item: A) -> B:
        caller = _Caller[A, B](item)
        with self._door:
            self._waiting.append(caller)
        with self._work:
            if not caller.served:
                with self._door:
                    group, self._waiting = self._waiting, []
                self._serve(group)
        if caller.error is not None:
            raise caller.error
        return caller.answer  # type: ignore[return-value]  # served without error: `do` answered for it

    def _serve(self, group: list[_Caller[A, B]]) -> None:
        try:
            answers = self._do([caller.item for caller in group])
            for caller, answer in zip(group, answers, strict=True):
                caller.answer = answer
        except BaseException as error:  # noqa: BLE001 (each caller raises it)
            for caller in group:
                caller.error = error
        finally:
            for caller in group:
                caller.served = True
