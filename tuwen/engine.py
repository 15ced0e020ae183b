"""The interface of an engine: one warm model of one kind, in the engine process.

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
    """One picture to generate; None leaves a value to the model."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    model: str = ""
    """Name of one of the kind's models; empty means the first."""
    previews: int = 0
    """Steps from one preview to the next; 0 means no previews."""

    kind = Kind.GENERATE

    @property
    def batch_key(self) -> Hashable:
        """The values that must be equal for two items to share a forward pass."""
        # With no negative prompt in the batch at all, pipelines condition on zeros and not on an empty text.
        return (self.model, self.width, self.height, self.steps, self.guidance, bool(self.negative_prompt))


@dataclass(frozen=True, slots=True)
class DescribeItem:
    """One image to describe. `pixels`: uint8 (height, width, 3); `max_tokens` limits the text."""

    pixels: Pixels
    language: Language = "en"
    style: Style = "short"
    max_tokens: int = 64
    prompt: str = ""
    """The question or instruction about the image; "" leaves it to `style`. Models that take no prompt ignore it."""
    seed: int | None = None
    """Sample the words, always the same for the same seed; None means the most probable text."""
    model: str = ""

    kind = Kind.DESCRIBE

    @property
    def batch_key(self) -> Hashable:
        """The values that must be equal for two items to share a forward pass."""
        return (self.model, self.max_tokens)


@dataclass(frozen=True, slots=True)
class RecognizeItem:
    """One image to recognise. `pixels`: uint8 (height, width, 3)."""

    pixels: Pixels
    model: str = ""

    kind = Kind.RECOGNIZE

    @property
    def batch_key(self) -> Hashable:
        """The values that must be equal for two items to share a forward pass."""
        return (self.model,)


@dataclass(frozen=True, slots=True)
class MatchItem:
    """One image and one text to score. `pixels`: uint8 (height, width, 3)."""

    pixels: Pixels
    text: str
    model: str = ""

    kind = Kind.MATCH

    @property
    def batch_key(self) -> Hashable:
        """The values that must be equal for two items to share a forward pass."""
        return (self.model,)


Item = GenerateItem | DescribeItem | RecognizeItem | MatchItem


@dataclass(frozen=True, slots=True)
class Picture:
    """A generated image before it is encoded and stored."""

    pixels: Pixels
    unknown_words: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """Parts of the request that were ignored, such as the end of a prompt that is too long."""
    revised_prompt: str = ""
    """The words that were drawn, when they differ from the prompt."""


Output = Picture | DescribeResult | RecognizeResult | MatchResult


Partial = str | Pixels
"""A part of an unfinished output: the beginning of a text, which may only grow, or a small picture."""

PREVIEW_SIDE = 128
"""Pixels of a small picture's longer side, at most."""

SoFar = Callable[[int], Partial | None]
"""Returns the partial output of item `index`; None where there is nothing new."""


class Run(Protocol):
    """The running batch, as the engine that runs it may report and ask."""

    def progress(self, step: int, steps: int, so_far: SoFar | None = None) -> None:
        """Report that `step` of `steps` sampling or decoding steps are done, for the whole batch.

        `so_far` is called before this returns, only for items that somebody watches, and not in every step: it
        costs nothing where nobody looks.
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
        """Report to the batch's run, with `so_far` translated to the batch's indices."""
        self._run.progress(step, steps, so_far and self._of_batch(so_far))

    def cancelled(self, index: int) -> bool:
        """Whether nobody waits any more for the item at `index` among these."""
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
        """Return a real input, for warm-up."""

    def batch_limit(self, item: Item) -> int:
        """Return how many items like `item` one call of `run` should get at most (≥ 1)."""

    def run(self, items: Sequence[Item], run: Run) -> Sequence[Output | TuwenError]:
        """Run one forward pass. Returns answers in the order of `items`, an error for an item that fails alone.

        A cancelled item's answer is thrown away, but must be there: `EngineError("cancelled")` will do.

        Raises:
            OutOfMemory: the batch does not fit; the caller tries smaller ones.
        """


@runtime_checkable
class Heavy(Protocol):
    """An engine of a large model offers this in addition: it can be evicted, and its batches measured.

    Constructed as `EngineClass(device=…, checkpoint=…)`.
    """

    batch: Any
    """How many items a batch should hold (a `workers.engines.placement.BatchSize`), kept while the model is evicted."""

    def weights(self) -> int:
        """Return the bytes of the weights on the device."""

    def calibrate(self, room: int) -> None:
        """Find the size of a batch that fits into `room` bytes beside the weights. After the example has run."""


@runtime_checkable
class Compilable(Protocol):
    """A heavy engine offers this in addition when torch can compile its networks."""

    def compile(self) -> None:
        """Compile where the options ask for it, for batches of each size up to `batch`'s; never again after that."""
