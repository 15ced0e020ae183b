"""How many threads of a CPU each model computes with. Imports no torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from workers.inference.residents import Key

SLOW = 1.0
"""Seconds of a trial; for a model that takes longer, the milliseconds of a job's other work do not matter."""
WORTH = 1.1
"""A model keeps the last core if that makes it faster by this factor."""
ROUNDS = 3


class Threads:
    """Gives each model as many threads as it makes use of: all, or one less.

    The queue, the database and storage need a core from time to time. OpenMP's threads wait for each other by spinning,
    so that a model which has to give up one core loses on all of them, and one that was given one less does not.

    Args:
        most: threads of this process; with one there is nothing to choose.
    """

    def __init__(self, most: int):
        self._most = most
        self._chosen: dict[Key, int] = {}

    def fit(self, key: Key, trial: Callable[[], object]) -> None:
        """Find out, once, how many threads the model uses in `trial`, a batch that has run before.

        That number stays set: a model is compiled for a number of threads.
        """
        if self._most > 1 and key not in self._chosen:
            self._chosen[key] = self._find_count(trial)
        self.use(key)

    def use(self, key: Key) -> None:
        """Set the number of threads for the model that runs now; one that was never tried gets all."""
        if self._most > 1:
            _set(self._chosen.get(key, self._most))

    def _find_count(self, trial: Callable[[], object]) -> int:
        def seconds(threads: int) -> float:
            _set(threads)
            started = time.perf_counter()
            trial()
            return time.perf_counter() - started

        if seconds(self._most) > SLOW:
            return self._most
        rounds = [(seconds(self._most), seconds(self._most - 1)) for _ in range(ROUNDS)]
        with_all, with_less = map(min, zip(*rounds, strict=True))
        return self._most if with_less > WORTH * with_all else self._most - 1


def _set(threads: int) -> None:
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
