"""The models of a worker that are loaded: as many as its memory budget holds; the least recently used are evicted.

Part of the budget is for the work itself, the activations: what all weights together leave, but at least `WORKING` of
it. An evicted model's weights are read again from disk, which the operating system mostly still holds in memory.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tuwen.engine import Compilable, Engine, Heavy
from tuwen.errors import EngineStartFailed
from tuwen.jobs import Kind

Key = tuple[Kind, str]
"""A model: its kind and its name."""

WORKING = 0.25
"""Least share of the budget that is kept for activations."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known:
    """What is known of a model while it is not loaded."""

    weights: int
    revision: str
    batch: Any = None
    """The model's `BatchSize`, which took trials to find."""


class Residents:
    """Loads models when they are wanted and evicts others. Engines that do not tell their weights always stay.

    Args:
        load: constructs a model's engine and runs its example.
        budget: bytes for weights and work; None means no bound.
        pinned: models that stay once they are loaded.
    """

    def __init__(self, load: Callable[[Key], Engine], budget: int | None, pinned: Iterable[Key] = ()):
        self._load = load
        self._budget = budget
        self._pinned = frozenset(pinned)
        self._engines: dict[Key, Engine] = {}
        """The most recently used last."""
        self._known: dict[Key, _Known] = {}

    @property
    def warm(self) -> frozenset[Key]:
        """Models that are loaded, and so can run at once."""
        return frozenset(self._engines)

    @property
    def revisions(self) -> Mapping[Key, str]:
        """The weights of every model that has been loaded, by model."""
        return {key: known.revision for key, known in self._known.items()}

    def get(self, key: Key) -> Engine:
        """Return the model's engine, loaded if it was not.

        Raises:
            EngineStartFailed: its weights and those of pinned models exceed the budget.
        """
        engine = self._engines.pop(key, None)
        if engine is None:
            if key in self._known:
                self._make_room(self._known[key].weights)
            engine = self._load(key)
            self._remember(key, engine)
            if isinstance(engine, Compilable):
                engine.compile()
        self._engines[key] = engine
        self._make_room(0, keep=key)
        return engine

    def expect(self, key: Key, weights: int) -> None:
        """Make room for a model that is loaded for the first time, by the size of its files."""
        if key not in self._known:
            self._make_room(weights)

    def _make_room(self, weights: int, keep: Key | None = None) -> None:
        """Evict until `weights` bytes more would fit, or nothing is left to evict; `keep` stays."""
        idle = [key for key in self._engines if key != keep and key not in self._pinned and self._weights(key)]
        while self._budget is not None and self._loaded + weights > self._budget - self.room and idle:
            key = idle.pop(0)
            logger.info("the %s model %s makes room for another", key[0].value, key[1])
            del self._engines[key]
            free_memory()

    def calibrate(self) -> None:
        """Let every model find the size of its batches in the memory that is left for work."""
        if self._budget is None:
            return
        for key in reversed(tuple(self._known)):  # what was loaded last is loaded still
            engine = self.get(key)
            if isinstance(engine, Heavy):
                engine.calibrate(self.room)

    @property
    def room(self) -> int:
        """Bytes for the activations of one batch."""
        if self._budget is None:
            return 0
        return max(self._budget - sum(known.weights for known in self._known.values()), int(self._budget * WORKING))

    @property
    def _loaded(self) -> int:
        return sum(self._weights(key) for key in self._engines)

    def _weights(self, key: Key) -> int:
        return self._known[key].weights

    def _remember(self, key: Key, engine: Engine) -> None:
        heavy = engine if isinstance(engine, Heavy) else None
        if heavy is not None and key in self._known:
            heavy.batch = self._known[key].batch
            return
        weights = heavy.weights() if heavy is not None else 0
        self._known[key] = _Known(weights, engine.revision, heavy.batch if heavy is not None else None)
        stays = weights + sum(self._weights(each) for each in self._pinned if each in self._known and each != key)
        if self._budget is not None and stays > self._budget * (1 - WORKING):
            raise EngineStartFailed(
                f"the weights of {key[1]} and of what is pinned take {stays / 2**30:.2f} GiB, and {1 - WORKING:.0%} "
                f"of the memory budget are {self._budget * (1 - WORKING) / 2**30:.2f} GiB: raise TUWEN_MEMORY_BUDGET, "
                "pin less, or let another worker serve the model"
            )


def free_memory() -> None:
    """Free memory that nothing uses any more, on the GPU too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
