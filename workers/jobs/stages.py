"""Jobs that take several engine calls: a generator yields the items of a stage, and is sent their answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Generic, TypeVar

from tuwen.engine import Item, Output

T = TypeVar("T")
Stages = Generator[Sequence[Item], list[Output], T]
Submit = Callable[[Item, int], "Future[Output]"]
"""A function that has an engine run an item, given its number in its stage; the steps of item 0 stand for all."""


def run_stages(stages: Stages[T], submit: Submit) -> Future[T]:
    """Run `stages` to their end, each stage's items side by side.

    No thread waits: the generator goes on in whichever thread the last answer of a stage comes, so it must not block.

    Returns:
        The future of what the generator returns. It raises what the first item to fail raised, or the generator
        itself; cancelling it cancels the items under way.
    """
    runner = _StageRunner(stages, submit)
    runner.advance(None)
    return runner.future


class _StageRunner(Generic[T]):
    def __init__(self, stages: Stages[T], submit: Submit):
        self.future: Future[T] = Future()
        self._stages = stages
        self._submit = submit
        self._lock = threading.Lock()
        # Guarded by the lock: the items of the stage, and how many of them have no answer yet.
        self._calls: list[Future[Output]] = []
        self._missing = 0
        self.future.add_done_callback(self._cancel_calls)

    def advance(self, answers: list[Output] | None) -> None:
        try:
            items = next(self._stages) if answers is None else self._stages.send(answers)
            calls = [self._submit(item, number) for number, item in enumerate(items)]
        except StopIteration as end:
            with suppress(InvalidStateError):
                self.future.set_result(end.value)
            return
        except Exception as error:  # noqa: BLE001 (who waits for the future is told)
            self._fail(error)
            return
        with self._lock:
            self._calls, self._missing = calls, len(calls)
        if self.future.done():  # cancelled while the items were submitted
            self._cancel_calls(self.future)
        for call in calls:
            call.add_done_callback(self._handle_answer)

    def _handle_answer(self, call: Future[Output]) -> None:
        if call.cancelled():
            return
        if (error := call.exception()) is not None:
            self._fail(error)
            return
        with self._lock:
            self._missing -= 1
            calls = self._calls if self._missing == 0 else []
        if calls:
            self.advance([each.result() for each in calls])

    def _fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def _cancel_calls(self, _: Future[T]) -> None:
        """Cancel what the stage still waits for; after the last stage this does nothing."""
        with self._lock:
            calls = self._calls
        for call in calls:
            call.cancel()
