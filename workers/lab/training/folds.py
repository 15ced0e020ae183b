"""k-fold cross-validation: how far a figure depends on which pictures happened to be learnt from."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tuwen.errors import ConfigurationError
from workers.lab.training import distributed
from workers.lab.training.checkpoint import write_atomically
from workers.lab.training.loop import Outcome

log = logging.getLogger(__name__)


class Divisible(Protocol):
    """Pictures and what is known of them."""

    def __len__(self) -> int: ...

    def take(self, rows: NDArray[np.intp]) -> Self:
        """The pictures with these numbers."""
        ...


Data = TypeVar("Data", bound=Divisible)
Train = Callable[[Data, Data, Path, float | None], Outcome]
"""Trains on the first, validates on the second, in a folder, within minutes."""


def folds(count: int, k: int, seed: int) -> list[NDArray[np.intp]]:
    """The rows 0 … count − 1, dealt at random into k parts of equal size.

    Raises:
        ConfigurationError: there are fewer rows than parts, or fewer than two parts.
    """
    if not 2 <= k <= count:
        raise ConfigurationError(f"{count} pictures cannot be cut into {k} folds.", field="folds")
    shuffled = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.array_split(shuffled, k)]


def cross_validate(
    data: Data,
    k: int,
    run: Path,
    train: Train[Data],
    *,
    seed: int,
    minutes: float | None = None,
) -> bool:
    """Trains k times, each time without another part of the data, on which the model is then measured.

    Each fold is a run of its own in `run/fold-1` and so on, and continues where it was interrupted. `run/folds.json`
    has the figures of each fold, their mean and their spread (standard deviation from fold to fold).

    Returns:
        Whether the time was enough for all folds.
    """
    start = time.monotonic()
    parts = folds(len(data), k, seed)
    for number, held_out in enumerate(parts, 1):
        others = np.sort(np.concatenate([part for part in parts if part is not held_out]))
        left = minutes
        if left is not None:
            spent = (time.monotonic() - start) / 60
            left = max(0.0, left - spent)
        outcome = train(data.take(others), data.take(held_out), run / f"fold-{number}", left)
        if not outcome.finished:
            log.info("fold %d of %d is at step %d", number, k, outcome.step)
            return False
    found = summarise([_read_metrics(run / f"fold-{number}") for number in range(1, k + 1)])
    for name, mean in found["mean"].items():
        log.info("%s  %.4g ± %.2g", name, mean, found["spread"][name])
    if distributed.is_first():
        text = json.dumps({**found, "seed": seed}, indent=2)
        write_atomically(run / "folds.json", (text + "\n").encode())
    return True


def _read_metrics(run: Path) -> dict[str, float]:
    facts: dict[str, Any] = json.loads((run / "weights.json").read_text())
    metrics: dict[str, float] = facts["metrics"]
    return metrics


def summarise(figures: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean and spread (sample standard deviation) of each figure that all folds have."""
    shared = [name for name in figures[0] if all(name in fold for fold in figures)]
    values = {name: [fold[name] for fold in figures] for name in shared}
    return {
        "folds": list(figures),
        "mean": {name: float(np.mean(each)) for name, each in values.items()},
        "spread": {name: float(np.std(each, ddof=1)) for name, each in values.items()},
    }
