"""The inside of the engine process: it loads the models, warms them up, and runs the batches that the parent sends.

Only the parent holds the other end of the wire, so the end of the parent is the end of the wire. This module imports
no torch: an engine does, after the device has been chosen.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shared.model_specs import ModelSpec
from shared.telemetry import logs
from tuwen.engine import PREVIEW_SIDE, Engine, Item, Output, Partial, Picture, SoFar
from tuwen.errors import EngineError, EngineStartFailed, OutOfMemory, TuwenError, UnknownModel
from tuwen.jobs import DescribeResult, Kind, MatchResult, RecognizeResult
from workers.inference.catalog import engine_path, is_pinned, parse_model_specs
from workers.inference.devices import hold_gpu
from workers.inference.messages import (
    CANCELLED,
    SLOTS,
    WATCHED,
    Answer,
    Answers,
    Failed,
    Limit,
    LimitQuestion,
    Loading,
    Lost,
    Ready,
    Reply,
    Request,
    Step,
)
from workers.inference.policy import Policy
from workers.inference.residents import Key, Residents, free_memory
from workers.inference.safety import SafetyFilter, load_safety_filter, run_filtered
from workers.inference.threads import Threads
from workers.inference.wire import Wire

PROGRESS_INTERVAL = 0.1
"""Seconds to the first progress message and between two: a shorter batch needs none, and a model of a thousand
quick steps would flood the parent with them."""

PARTS_PER_SECOND = 40_000
"""Bytes of growing texts and previews in a second; where there are more, as in a full batch of which each item is
watched, they are sent more rarely. Decoding so many takes up to 6 % of a core, which is kept from the model."""
ENCODED = 1 / 16
"""Share of a preview's bytes that is left once it is encoded."""
LONGEST_PART = 16_384
"""Most characters of a growing text that are sent; the whole text comes with the result."""

TRIAL = 8
"""Items of the batches by which a model's number of threads is found."""

PR_SET_PDEATHSIG = 1
"""The option's number in <linux/prctl.h>."""

_BROUGHT_BY = {"worker": ("safetensors", "torch"), "models": ("diffusers", "huggingface_hub", "transformers")}
"""What engines need, by the extra that brings it."""

OUTPUTS: dict[Kind, type[Output]] = {
    Kind.GENERATE: Picture,
    Kind.DESCRIBE: DescribeResult,
    Kind.RECOGNIZE: RecognizeResult,
    Kind.MATCH: MatchResult,
}


class _CheckpointEngine(Protocol):
    """The class of an engine that a checkpoint is loaded into."""

    layout: str
    """How the files of its checkpoints are arranged."""

    def __call__(self, *, device: str, checkpoint: object) -> Engine: ...


def main(
    wire: Wire[Request],
    flags: Sequence[int],
    specs: Mapping[Kind, str],
    visible: str,
    device: str,
    threads: int,
    policy: Policy,
) -> None:
    """Entry of the spawned process.

    `flags` is shared memory, a byte for each item of the running batch (see `messages.CANCELLED`);
    `visible` and `device` are what `devices.visible_device` returned; `threads` compute where the device is the CPU,
    unless OMP_NUM_THREADS says how many.
    """
    # Ctrl-C and a supervisor's SIGTERM reach the whole process group; the parent decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with_parent()
    faulthandler.enable()
    logs.configure_child()
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    ours = Threads(1)
    if device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        ours = Threads(threads)
    host = _Host(wire, flags, parse_model_specs(specs), device, policy, ours)
    # EOFError and OSError come from the wire: the parent is gone, so this process ends too.
    with contextlib.suppress(EOFError, OSError):
        if host.start():
            host.serve()


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, even while a model computes and nobody reads the wire.

    The signal comes when the *thread* that started this process ends; the parent starts it from one that lasts.
    On other systems than Linux, the end of the wire has to do.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # it ended before the call above
        os._exit(1)


class _Host:
    def __init__(
        self,
        wire: Wire[Request],
        flags: Sequence[int],
        models: Mapping[Key, ModelSpec],
        device: str,
        policy: Policy,
        threads: Threads,
    ):
        self.wire = wire
        self.flags = flags
        self.models = models
        self.device = device
        self.policy = policy
        self.threads = threads
        self.safety_filter: SafetyFilter | None = None
        self.residents: Residents

    def start(self) -> bool:
        """Load and warm every model, and report to the parent. Returns whether all are ready."""
        loading = "the engine process"
        try:
            if self.device != "cpu":
                self.gpu = hold_gpu(self.device)
            if self.policy.safety is not None:
                self.safety_filter = load_safety_filter(self.policy.safety)
            stay = [key for key, spec in self.models.items() if is_pinned(spec)]
            self.residents = Residents(self.load, _budget(self.policy, self.device), stay)
            for key, spec in self.models.items():
                loading = f"{key[0].value} engine {spec.text!r}"
                self.send(Loading(key[0], spec.text))
                self.residents.get(key)
            if self.device != "cpu":
                self.residents.calibrate()
        except Exception as error:  # noqa: BLE001  # whatever it is, the parent reports and logs it
            failure = EngineStartFailed(f"{loading} cannot start: {_cause(error)}")
            self.send(Failed(failure, traceback.format_exc()))
            return False
        return self.send(Ready(dict(self.residents.revisions), _device_name(self.device), self.residents.warm))

    def load(self, key: Key) -> Engine:
        """Construct the engine and run its example once, as a job would."""
        kind, spec = key[0], self.models[key]
        module, name = engine_path(kind, spec)
        engine_class = _import(module, name)
        engine = self.checkpoint_engine(key, engine_class) if spec.from_checkpoint else engine_class(device=self.device)
        if not isinstance(engine, Engine) or engine.kind is not kind:
            raise TypeError(f"{name} is not an engine that can {kind.value}")
        example = engine.example()
        trial = [example] * min(engine.batch_limit(example), TRIAL)
        answer = _check_answers(kind, engine.run([example], _Run(self, 1)), 1)[0]
        if isinstance(answer, TuwenError):
            raise answer
        if spec.engine != "import":  # a user's own engine may count what it does, or pay for it
            self.threads.fit(key, lambda: engine.run(trial, _Run(self, len(trial))))
        return engine

    def checkpoint_engine(self, key: Key, engine_class: _CheckpointEngine) -> Engine:
        """Find the checkpoint and load it, and report progress."""
        # By name, since this room imports no engine; it needs the extra `models`.
        checkpoint = import_module("workers.engines.checkpoint")
        spec = self.models[key]

        def report(stage: str, done: int, size: int) -> None:
            self.send(Loading(key[0], spec.text, stage, done, size))

        found = checkpoint.locate(spec, engine_class.layout, self.policy, report)
        self.residents.expect(key, found.size)
        before = _resident_bytes()
        engine: Engine = checkpoint.run_with_progress(
            lambda: engine_class(device=self.device, checkpoint=found),
            lambda: min(_resident_bytes() - before, found.size),
            lambda done: report("loading weights", done, found.size),
        )
        return engine

    def serve(self) -> None:
        """Answer requests until the parent hangs up or the device is lost."""
        while True:
            reply = self.reply(self.wire.receive())
            if isinstance(reply, Failed) and isinstance(reply.error, OutOfMemory):
                free_memory()  # here, where no traceback holds the batch's tensors any more
            if not self.send(reply):
                return

    def reply(self, request: Request) -> Reply:
        kind = request.kind
        try:
            if isinstance(request, LimitQuestion):
                limit = self.engine(kind, request.item).batch_limit(request.item)
                return Limit(min(max(1, limit), SLOTS), self.residents.warm)
            count = len(request.items)
            answers = self.run(self.engine(kind, request.items[0]), request.items)
            return Answers(_check_answers(kind, answers, count), self.residents.warm)
        except TuwenError as error:
            return Failed(error)
        except Exception as error:  # noqa: BLE001  # one bad batch must not end the process
            trace = traceback.format_exc()
            if _is_out_of_memory(error):
                return Failed(OutOfMemory(f"the {kind.value} model ran out of memory"))
            if "CUDA error" in str(error):
                # Such an error is sticky (CUDA C++ Programming Guide, "Error Checking"): every later call fails too.
                return Lost(f"the device failed under the {kind.value} model: {_cause(error)}", trace)
            return Failed(EngineError(f"the {kind.value} model failed ({type(error).__name__})"), trace)

    def run(self, engine: Engine, items: Sequence[Item]) -> Sequence[Answer]:
        run = _Run(self, len(items))
        return (
            engine.run(items, run)
            if self.safety_filter is None
            else run_filtered(engine, items, run, self.safety_filter)
        )

    def engine(self, kind: Kind, item: Item) -> Engine:
        """Return the engine of the item's model, loaded again if it was evicted.

        Raises:
            UnknownModel: this worker has no model of that name.
        """
        names = [name for each, name in self.models if each is kind]
        name = item.model or names[0]
        if name not in names:
            raise UnknownModel(f"this worker has no {kind.value} model {name!r}; it has {', '.join(names)}")
        try:
            engine = self.residents.get((kind, name))
        except (EngineStartFailed, OSError) as error:  # such as after its files changed; other models can still serve
            raise EngineError(f"the {kind.value} model {name} cannot be loaded again: {_cause(error)}") from error
        self.threads.use((kind, name))
        return engine

    def send(self, message: object) -> bool:
        """Send a message. Returns False when it was the last one of this process."""
        try:
            self.wire.send(message)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  # a user's own engine may answer with anything
            failure = EngineError(f"an answer cannot be sent ({type(error).__name__})")
            self.wire.send(Failed(failure, traceback.format_exc()))
        return not isinstance(message, Lost)


class _Run:
    """The running batch as its engine sees it: see `tuwen.engine.Run`."""

    def __init__(self, host: _Host, count: int):
        self._host = host
        self._count = count
        self._next = time.monotonic() + PROGRESS_INTERVAL

    def progress(self, step: int, steps: int, so_far: SoFar | None = None) -> None:
        if time.monotonic() < self._next:
            return
        parts = {} if so_far is None else self._parts(so_far)
        self._host.send(Step(int(step), int(steps), parts))
        size = sum(len(part) if isinstance(part, str) else part.nbytes * ENCODED for part in parts.values())
        self._next = time.monotonic() + max(PROGRESS_INTERVAL, size / PARTS_PER_SECOND)

    def _parts(self, so_far: SoFar) -> dict[int, Partial]:
        watched = [index for index, flag in enumerate(self._host.flags[: self._count]) if flag == WATCHED]
        parts = ((index, so_far(index)) for index in watched)
        return {index: _bound_part(part) for index, part in parts if part is not None}

    def cancelled(self, index: int) -> bool:
        if not 0 <= index < self._count:
            raise IndexError(f"item {index} of a batch of {self._count}")
        return self._host.flags[index] & CANCELLED != 0


def _bound_part(part: Partial) -> Partial:
    """Cut a text that may grow without end; refuse a picture that is not a small one."""
    if isinstance(part, str):
        return part[:LONGEST_PART]
    if part.dtype != np.uint8 or part.shape[2:] != (3,) or max(part.shape[:2]) > PREVIEW_SIDE:
        raise TypeError(f"a preview is RGB of 8 bits with sides of at most {PREVIEW_SIDE} pixels")
    return part


def _check_answers(kind: Kind, answers: Sequence[object], count: int) -> list[Answer]:
    """Check that the answers are `count` outputs of `kind`, and return them."""
    if len(answers) != count:
        raise TypeError(f"{len(answers)} answers to {count} items")
    return [_check_answer(kind, answer) for answer in answers]


def _check_answer(kind: Kind, answer: object) -> Answer:
    if isinstance(answer, TuwenError):
        return answer
    if not isinstance(answer, OUTPUTS[kind]):
        raise TypeError(f"{type(answer).__name__} is no answer to a {kind.value} item")
    if isinstance(answer, Picture):
        pixels = answer.pixels
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[2:] != (3,):
            return EngineError("the generate model did not answer with RGB pixels of 8 bits")
    return answer


def _is_out_of_memory(error: Exception) -> bool:
    """Torch has its own type on the GPU only; others are known by their text."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    signs = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _import(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        for extra, packages in _BROUGHT_BY.items():
            if error.name in packages:
                raise EngineStartFailed(f"{error.name} is not installed here: pip install 'tuwen[{extra}]'") from error
        raise


def _budget(policy: Policy, device: str) -> int | None:
    """Bytes for all models: what the installation grants, otherwise what the GPU has free."""
    if policy.memory_budget is not None or device == "cpu":
        return policy.memory_budget
    torch = import_module("torch")
    return int(torch.cuda.mem_get_info(device)[0]) if torch.cuda.is_available() else None


def _resident_bytes() -> int:
    """Bytes that this process holds in memory and on its GPU."""
    torch = sys.modules.get("torch")
    on_gpu = torch.cuda.memory_allocated() if torch is not None and torch.cuda.is_initialized() else 0
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not on Linux
        return int(on_gpu)
    return pages * resource.getpagesize() + int(on_gpu)


def _device_name(device: str) -> str:
    torch = sys.modules.get("torch")
    if device == "cpu" or torch is None or not torch.cuda.is_available():
        return device
    return str(torch.cuda.get_device_name(device))


def _cause(error: Exception) -> str:
    """The error in one short line."""
    if isinstance(error, TuwenError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300].removesuffix(": ")
