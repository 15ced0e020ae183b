"""The engine process seen from the worker: start it, ask it, notice when it dies or hangs, end it.

A child of the worker, spawned, never forked: CUDA does not survive a fork, and the worker itself must never touch it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import RawArray
from typing import overload

from tuwen.engine import Item, Partial
from tuwen.errors import EngineCrashed, EngineError, EngineHung, EngineStartFailed
from tuwen.jobs import Kind
from workers.inference import host, messages
from workers.inference.catalog import parse_model_specs
from workers.inference.cores import usable_cores
from workers.inference.devices import visible_device
from workers.inference.messages import Answer
from workers.inference.policy import Policy
from workers.inference.residents import Key
from workers.inference.wire import Wire, open_wire

CANCEL_INTERVAL = 0.05
"""Seconds between two looks at which items of the running batch were cancelled, and which are watched."""

DYING = 5.0
"""Seconds that a process gets to exit by itself once its wire is closed, and to end once it is killed."""

OnProgress = Callable[[int, int, Mapping[int, Partial]], None]

logger = logging.getLogger(__name__)
_spawn = multiprocessing.get_context("spawn")


def _ignore_progress(_step: int, _steps: int, _parts: Mapping[int, Partial]) -> None: ...


def _never(_index: int) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class _Child:
    process: SpawnProcess
    wire: Wire[messages.Message]


class EngineProcess:
    """The warm models of a worker, in a process of their own.

    One request at a time: callers wait for each other. `stop` may come from any thread and interrupts.
    After a crash or a hang the process is gone, and `start` makes a fresh, warmed one.

    Args:
        specs: the models of each kind as `shared.model_specs` explains, the first one for items that name none.
        device: `cpu`, `cuda` or `cuda:N`, N counting the devices that CUDA_VISIBLE_DEVICES leaves visible.
        start_timeout: seconds without any progress in loading and warming the models.
        batch_timeout: seconds of silence, neither progress nor answer, after which the process is killed.
        threads: number of threads that compute on the CPU; by default one per core.
    """

    def __init__(
        self,
        specs: Mapping[Kind, str],
        device: str,
        start_timeout: float = 600.0,
        batch_timeout: float = 300.0,
        policy: Policy = Policy(),  # noqa: B008  # it never changes
        threads: int | None = None,
    ):
        self.specs = dict(specs)
        self.device = device
        self.start_timeout = start_timeout
        self.batch_timeout = batch_timeout
        self.policy = policy
        self.threads = threads or usable_cores()
        self.revisions: dict[Kind, dict[str, str]] = {}
        """The revision of each model of each kind, once started; the default model first."""
        self.device_name: str | None = None
        self._busy = threading.Lock()
        self._child: _Child | None = None
        self._warm: frozenset[Key] = frozenset()
        self._flags = RawArray("B", messages.SLOTS)
        # The process ends with the thread that started it (see host._end_with_parent): one that lasts starts them all.
        self._starter = ThreadPoolExecutor(1, "engine-starter")

    @property
    def alive(self) -> bool:
        """Whether there is a process and it runs."""
        child = self._child
        with contextlib.suppress(ValueError):  # another thread has just ended it
            return child is not None and child.process.is_alive()
        return False

    @property
    def pid(self) -> int | None:
        """Id of the running process; None while there is none."""
        child = self._child
        with contextlib.suppress(ValueError):
            return child.process.pid if child is not None else None
        return None

    def start(self) -> None:
        """Spawn the process and wait until every model is loaded and has run an example. Replaces a running one.

        Raises:
            EngineStartFailed: with the kind, its spec and the reason.
        """
        with self._busy:
            self._end()
            models = parse_model_specs(self.specs)
            child = self._launch(*visible_device(self.device, os.environ.get("CUDA_VISIBLE_DEVICES")))
            try:
                ready = self._await_ready(child)
            except BaseException:
                self._end()
                raise
            self.device_name, self._warm = ready.device_name, ready.warm
            self.revisions = {kind: {} for kind in self.specs}
            for kind, name in models:
                self.revisions[kind][name] = ready.revisions[kind, name]
            logger.info("engine process %s is warm on %s: %s", self.pid, ready.device_name, self.revisions)

    def run(
        self,
        kind: Kind,
        items: Sequence[Item],
        on_progress: OnProgress = _ignore_progress,
        cancelled: Callable[[int], bool] = _never,
        watched: Callable[[int], bool] = _never,
    ) -> list[Answer]:
        """Run one batch of at most `limit` items; returns answers in their order, errors for items that failed alone.

        Args:
            on_progress: called with `(step, steps, parts)`; `parts` has the partial outputs of watched items.
            cancelled: asked 20 times a second whether nobody wants item `index` any more; the engine sees it at once.
            watched: asked as often whether somebody wants to see the item's partial output.

        Raises:
            EngineCrashed: the process died.
            EngineHung: it was silent for `batch_timeout`, and was killed.
            OutOfMemory: the batch does not fit.
            EngineError: the batch failed as a whole.
        """
        with self._busy:
            batch = messages.BatchRequest(kind, tuple(items))
            return self._ask(batch, on_progress, cancelled, watched).answers

    def limit(self, kind: Kind, item: Item) -> int:
        """Return how many items like `item` one batch should hold at most (≥ 1). Raises what `run` raises."""
        with self._busy:
            return self._ask(messages.LimitQuestion(kind, item)).limit

    def is_warm(self, item: Item) -> bool:
        """Whether the item's model is loaded; if not, its batch begins with minutes of loading. Never waits."""
        return (item.kind, item.model or next(iter(self.revisions.get(item.kind, {})), "")) in self._warm

    def stop(self) -> None:
        """End the process: politely when it is idle, at once when a batch or a start is under way."""
        while not self._busy.acquire(timeout=0.05):
            child = self._child
            if child is not None:
                with contextlib.suppress(ValueError):  # the thread that holds the lock has just ended it
                    child.process.kill()
        try:
            self._end(patience=DYING)
        finally:
            self._busy.release()

    # ── with the lock held ────────────────────────────────────────────────────────────────────────

    def _launch(self, visible: str, device: str) -> _Child:
        ours, theirs = open_wire(_spawn)
        ours.set_timeout(self.batch_timeout)
        self._flags[:] = bytes(messages.SLOTS)  # otherwise the examples would look cancelled
        arguments = (theirs, self._flags, self.specs, visible, device, self.threads, self.policy)
        process = _spawn.Process(target=host.main, args=arguments, name="tuwen-engine")
        self._starter.submit(process.start).result()
        theirs.close()  # the process must hold the only other end, so that its death is the end of the wire
        self._child = _Child(process, ours)
        # Runs before multiprocessing's own exit handler, which would wait for the process forever.
        atexit.register(self.stop)
        return self._child

    def _await_ready(self, child: _Child) -> messages.Ready:
        loading = "the engine process"
        deadline = time.monotonic() + self.start_timeout
        try:
            while True:
                message = _receive(child, deadline)
                if isinstance(message, messages.Ready):
                    return message
                if isinstance(message, messages.Failed):
                    logger.error("%s\n%s", message.error, message.trace)
                    raise message.error
                if isinstance(message, messages.Loading):
                    loading = f"{message.kind.value} engine {message.spec!r}"
                    deadline = time.monotonic() + self.start_timeout
                    log_loading(message)
        except TimeoutError as error:
            raise EngineStartFailed(f"{loading} made no progress for {self.start_timeout:g} s of its start") from error
        except (EOFError, OSError) as error:
            raise EngineStartFailed(f"{loading} died while starting: the process {self._end(DYING)}") from error

    @overload
    def _ask(self, request: messages.LimitQuestion) -> messages.Limit: ...

    @overload
    def _ask(
        self,
        request: messages.BatchRequest,
        on_progress: OnProgress,
        cancelled: Callable[[int], bool],
        watched: Callable[[int], bool],
    ) -> messages.Answers: ...

    def _ask(
        self,
        request: messages.Request,
        on_progress: OnProgress = _ignore_progress,
        cancelled: Callable[[int], bool] = _never,
        watched: Callable[[int], bool] = _never,
    ) -> messages.Answers | messages.Limit:
        """Send a request and return its `Answers` or `Limit`. Afterwards the process is idle, or gone."""
        if request.kind not in self.specs:
            raise EngineError(f"this worker has no engine that can {request.kind.value}")
        try:
            reply = self._exchange(request, on_progress, cancelled, watched)
        except (BlockingIOError, TimeoutError) as error:
            self._end()
            raise EngineHung(f"the engine gave no sign of life for {self.batch_timeout:g} s and was killed") from error
        except (EOFError, OSError) as error:
            raise EngineCrashed(f"the engine process {self._end(DYING)}") from error
        except BaseException:  # such as a callback's: otherwise the next request would get this one's answer
            self._end()
            raise
        if isinstance(reply, messages.Lost):
            self._end(DYING)
            logger.error("%s\n%s", reply.detail, reply.trace)
            raise EngineCrashed(reply.detail)
        if isinstance(reply, messages.Failed):
            if reply.trace:
                logger.error("%s\n%s", reply.error, reply.trace)
            raise reply.error
        self._warm = reply.warm
        return reply

    def _exchange(
        self,
        request: messages.Request,
        on_progress: OnProgress,
        cancelled: Callable[[int], bool],
        watched: Callable[[int], bool],
    ) -> messages.Reply:
        child = self._child
        if child is None:
            raise EOFError
        count = len(request.items) if isinstance(request, messages.BatchRequest) else 0
        self._set_flags(count, _never, watched)
        child.wire.send(request)

        def update_flags() -> None:
            self._set_flags(count, cancelled, watched)

        while True:
            message = _receive(child, time.monotonic() + self.batch_timeout, update_flags)
            if isinstance(message, messages.Step):
                on_progress(message.step, message.steps, message.parts)
                update_flags()  # otherwise never, where steps come faster than the interval
            elif isinstance(message, messages.Loading):
                log_loading(message)
            elif not isinstance(message, messages.Ready):  # that one ends the start, and no request
                return message

    def _set_flags(self, count: int, cancelled: Callable[[int], bool], watched: Callable[[int], bool]) -> None:
        for index in range(count):
            self._flags[index] = messages.CANCELLED * cancelled(index) | messages.WATCHED * watched(index)

    def _end(self, patience: float = 0.0) -> str:
        """End and reap the process, by force after `patience` seconds. Returns how it ended."""
        child, self._child = self._child, None
        if child is None:
            return "was not running"
        atexit.unregister(self.stop)
        child.wire.close()
        process = child.process
        process.join(patience)
        if process.exitcode is None:
            process.kill()
            process.join(DYING)
        if process.exitcode is None:
            logger.error("process %s does not even obey SIGKILL; its device's driver may be stuck", process.pid)
            return "cannot be killed"
        ending = _ending(process.exitcode)
        process.close()
        return ending


def _receive(child: _Child, deadline: float, meanwhile: Callable[[], None] = lambda: None) -> messages.Message:
    """Wait for the next message of the process.

    Raises:
        TimeoutError: none came before the monotonic `deadline`.
        EOFError, OSError: none will come.
    """
    while not child.wire.poll(CANCEL_INTERVAL):
        meanwhile()
        if time.monotonic() > deadline:
            raise TimeoutError
        # A process that an engine forked may hold the wire open after the engine's own death.
        if not child.process.is_alive() and not child.wire.poll():
            raise EOFError
    return child.wire.receive()


def log_loading(message: messages.Loading) -> None:
    """Log one line about a model that is loading."""
    if not message.stage:
        logger.info("loading the %s engine %s", message.kind.value, message.spec)
    elif message.size:
        share, size = message.done / message.size, message.size / 2**20
        logger.info("%s of %s: %.0f %% of %.0f MiB", message.stage, message.spec, 100 * share, size)
    else:
        logger.info("%s: %.0f MiB", message.stage, message.done / 2**20)


def _ending(exitcode: int) -> str:
    if exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"
