"""What an engine is: one warm model of one kind, living in the engine process.

Inputs and outputs cross a process boundary, so they are plain picklable values; pixels are
C-contiguous `uint8` arrays of shape (height, width, 3), RGB.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tuwen.errors import TuwenError
from tuwen.jobs import DescribeResult, Kind, Language, MatchResult, RecognizeResult, Style

Pixels: TypeAlias = NDArray[np.uint8]
"""Shape (height, width, 3), RGB."""


@dataclass(frozen=True, slots=True)
class GenerateItem:
    prompt: str
    seed: int
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    model: str = ""
    """Which of the kind's models; none means the first."""
    previews: int = 0
    """Steps from one preview to the next; 0: none is wanted."""

    kind = Kind.GENERATE

    @property
    def batch_key(self) -> Hashable:
        """What must be equal for two items to share a forward pass."""
        # With no negative prompt in the batch at all, pipelines condition on zeros and not on an empty text.
        return (self.model, self.width, self.height, self.steps, self.guidance, bool(self.negative_prompt))


@dataclass(frozen=True, slots=True)
class DescribeItem:
    pixels: Pixels
    language: Language = "en"
    style: Style = "short"
    max_tokens: int = 64
    prompt: str = ""
    """What to say or answer about the image; "" leaves it to `style`. Models that take no prompt ignore it."""
    seed: int | None = None
    """Draw the words by lot, always the same for the same seed; none means the most probable text."""
    model: str = ""

    kind = Kind.DESCRIBE

    @property
    def batch_key(self) -> Hashable:
        return (self.model, self.max_tokens)


@dataclass(frozen=True, slots=True)
class RecognizeItem:
    pixels: Pixels
    model: str = ""

    kind = Kind.RECOGNIZE

    @property
    def batch_key(self) -> Hashable:
        return (self.model,)


@dataclass(frozen=True, slots=True)
class MatchItem:
    pixels: Pixels
    text: str
    model: str = ""

    kind = Kind.MATCH

    @property
    def batch_key(self) -> Hashable:
        return (self.model,)


Item = GenerateItem | DescribeItem | RecognizeItem | MatchItem


@dataclass(frozen=True, slots=True)
class Picture:
    """A generated image before it is encoded and stored."""

    pixels: Pixels
    unknown_words: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What of the request was not heeded, the end of a prompt that is too long for instance."""


Output = Picture | DescribeResult | RecognizeResult | MatchResult


Partial = str | Pixels
"""What there is of an output before it is done: the beginning of a text, which may only grow, or a small picture."""

PREVIEW_SIDE = 128
"""Pixels of a small picture's longer side, at most."""

SoFar = Callable[[int], Partial | None]
"""Answers what there is of item `index`; None where that is nothing, or nothing new."""


class Run(Protocol):
    """What a running batch may tell and ask while it runs."""

    def progress(self, step: int, steps: int, so_far: SoFar | None = None) -> None:
        """Tell that `step` of `steps` sampling or decoding steps are done, for the whole batch.

        `so_far` is asked before this returns, for those items that somebody watches, and not in every step: what it
        makes costs nothing where nobody looks.
        """

    def cancelled(self, index: int) -> bool:
        """Whether nobody waits for item `index` any more; ask between steps, and stop when all are."""


class Renumbered:
    """The run of some items of a batch, by their indices in it."""

    def __init__(self, run: Run, indices: Sequence[int]):
        self._run = run
        self._indices = list(indices)
        self._places = {index: place for place, index in enumerate(self._indices)}

    def progress(self, step: int, steps: int, so_far: SoFar | None = None) -> None:
        self._run.progress(step, steps, so_far and self._of_batch(so_far))

    def cancelled(self, index: int) -> bool:
        return self._run.cancelled(self._indices[index])

    def _of_batch(self, so_far: SoFar) -> SoFar:
        return lambda index: so_far(self._places[index]) if index in self._places else None


@runtime_checkable
class Engine(Protocol):
    """Constructed in the engine process as `EngineClass(device=…)`: the constructor loads the weights.

    The process then runs `example` once before the worker takes its first job.
    """

    kind: Kind
    revision: str
    """Identifies the weights; recorded with every result."""

    def example(self) -> Item:
        """A real input, for warm-up."""

    def batch_limit(self, item: Item) -> int:
        """Most items like `item` that one call of `run` should get (≥ 1)."""

    def run(self, items: Sequence[Item], run: Run) -> Sequence[Output | TuwenError]:
        """One forward pass. Answers in the order of `items`, an error for an item that fails alone.

        A cancelled item's answer is thrown away, but must be there: `EngineError("cancelled")` will do.

        Raises:
            OutOfMemory: the batch does not fit; the caller tries smaller ones.
        """


@runtime_checkable
class Heavy(Protocol):
    """What an engine of a large model has besides: it can be evicted for another, and its batches be measured.

    Constructed as `EngineClass(device=…, checkpoint=…)`.
    """

    batch: Any
    """How many items a batch should hold (a `workers.engines.placement.BatchSize`), kept while the model is evicted."""

    def weights(self) -> int:
        """Bytes of the weights on the device."""

    def calibrate(self, room: int) -> None:
        """Find the size of a batch that fits into `room` bytes beside the weights. After the example has run."""


@runtime_checkable
class Compilable(Protocol):
    """What a heavy engine has besides whose networks torch can compile."""

    def compile(self) -> None:
        """Do so, where the options ask for it, for batches of each size up to `batch`'s; never again after that."""
