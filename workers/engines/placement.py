"""Placement of a checkpoint on a device: precision, size of the weights, compilation, the size of a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter

import torch
from torch import nn

from tuwen.engine import SoFar
from tuwen.errors import EngineStartFailed

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
"""Modes of torch.compile; the latter two use CUDA graphs, which pay where batches are small and alike."""

PAYS = 1.05
"""A larger batch must raise the throughput by this factor; otherwise it only makes people wait longer."""
MARGIN = 0.9
"""Share of the free memory that a batch may be planned to fill: allocators leave gaps."""

logger = logging.getLogger(__name__)


def precision(device: str, options: Mapping[str, str]) -> torch.dtype:
    """Choose the type of weights and activations: the option `dtype`, otherwise bfloat16 where the chip has it.

    Raises:
        EngineStartFailed: no such type.
    """
    if (name := options.get("dtype")) is not None:
        if name not in PRECISIONS:
            raise EngineStartFailed(f"dtype={name}: there are {', '.join(PRECISIONS)}")
        return PRECISIONS[name]
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class Compilation:
    """Runs torch.compile as the option `compile` says, all of it before the first job.

    Raises:
        EngineStartFailed: no such mode.
    """

    def __init__(self, options: Mapping[str, str]):
        self.mode = options.get("compile")
        self._ended = False
        if self.mode not in (None, *COMPILE_MODES):
            raise EngineStartFailed(f"compile={self.mode}: there are {', '.join(COMPILE_MODES)}")

    def run(
        self, networks: Iterable[nn.Module], trial: Callable[[int], object], largest: int, dynamic: bool | None = None
    ) -> None:
        """Compile the networks for batches of every size up to `largest`, by running `trial` with some sizes.

        Size one is special to the compiler; at two it makes the size a variable, which mostly works for the largest.

        Args:
            dynamic: whether other dimensions vary as well; None has the compiler find out.
        """
        if self.mode is None:
            return
        for network in networks:
            network.compile(mode=self.mode, dynamic=dynamic)
        for size in sorted({1, min(2, largest), largest}):
            trial(size)
        self._ended = True

    @contextmanager
    def reopen(self) -> Iterator[None]:
        """A block in which compiling is allowed again; only for use before the first job."""
        ended, self._ended = self._ended, False
        yield
        self._ended = ended

    def forbid_more(self) -> AbstractContextManager[object]:
        """A block in which nothing is compiled after `run`: what is new, such as a picture's size, runs uncompiled.

        Compiling takes minutes, for which every job would wait, and the process may then count as hung.
        """
        return torch.compiler.set_stance("eager_on_recompile") if self._ended else nullcontext()


def require_known_options(options: Mapping[str, str], known: Iterable[str]) -> None:
    """Refuse options that mean nothing: a misspelt one would silently change nothing.

    Raises:
        EngineStartFailed: an option is neither `known` nor one that every checkpoint has.
    """
    known = {"dtype", "variant", "batch", "pinned", *known}
    if unknown := sorted(set(options) - known):
        raise EngineStartFailed(f"no option is called {unknown[0]}; there are {', '.join(sorted(known))}")


def number(options: Mapping[str, str], name: str, default: float) -> float:
    """Return the option as a number.

    Raises:
        EngineStartFailed: it is not a number.
    """
    try:
        return float(options.get(name, default))
    except ValueError as error:
        raise EngineStartFailed(f"{name}={options[name]} is no number") from error


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the modules' parameters and buffers; shared ones count once."""
    tensors = {t.data_ptr(): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def in_use(device: str) -> int:
    """Bytes that torch holds on a GPU; 0 on a CPU, whose memory is everybody's."""
    return 0 if device == "cpu" else torch.cuda.memory_allocated(device)


class UnobservedRun:
    """The `Run` of a trial, which nobody listens to or cancels."""

    def progress(self, step: int, steps: int, so_far: SoFar | None = None) -> None:
        """Do nothing."""

    def cancelled(self, index: int) -> bool:  # noqa: ARG002
        """Return False: nobody cancels a trial."""
        return False


class BatchSize:
    """How many items of a model one batch should hold, found by trying.

    Before `measure`, and always on a CPU, where memory is plenty and a larger batch gains little, it is `start`.
    Nothing is tried where `start` is `most`.
    An item that takes more work than the measured one counts for more, such as by its number of pixels.
    """

    def __init__(self, device: str, start: int, most: int):
        self.device = device
        self.most = most
        self.best = start

    @classmethod
    def of(cls, device: str, options: Mapping[str, str], start: int, most: int) -> BatchSize:
        """A size as the option `batch` says; without it, trials find it between `start` and `most`."""
        given = int(number(options, "batch", 0))
        return cls(device, given, given) if given > 0 else cls(device, start, most)

    def limit(self, share: float = 1.0) -> int:
        """Return the most items of a batch, for items of `share` times the measured work (≥ 1)."""
        return max(1, min(self.most, int(self.best / max(share, 1e-6))))

    def measure(self, run: Callable[[int], object], room: int) -> None:
        """Double the batch for as long as it fits into `room` bytes and pays; every size kept here has truly run.

        Memory of a batch grows evenly, so that of the next one is predicted from the last two; a wrong prediction
        ends in an OutOfMemoryError, which ends the search too.
        """
        if self.device == "cpu" or self.best == self.most:
            return
        base, peaks, best_rate, size = in_use(self.device), {0: 0}, 0.0, 1
        while size <= self.most:
            before = size // 2
            foreseen = peaks[before] + (peaks[before] - peaks.get(before // 2, 0)) * (2 if before > 1 else 1)
            if size > 1 and foreseen > MARGIN * room:
                break
            try:
                seconds = self._time(run, size)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
            peaks[size] = torch.cuda.max_memory_allocated(self.device) - base
            rate = size / seconds
            logger.info("a batch of %d: %.2f items/s, %.2f GiB", size, rate, peaks[size] / 2**30)
            if peaks[size] > room or rate < PAYS * best_rate:
                break
            self.best, best_rate, size = size, rate, size * 2

    def _time(self, run: Callable[[int], object], size: int) -> float:
        run(size)  # kernels are chosen, and graphs compiled, at the first sight of a shape
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        started = perf_counter()
        run(size)
        torch.cuda.synchronize(self.device)
        return perf_counter() - started
