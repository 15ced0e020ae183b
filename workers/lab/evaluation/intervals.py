"""Figures with the uncertainty that comes from having asked only so many questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 1000
LEVEL = 0.95

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""A function from sums over questions (…, columns) to the figure (…)."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its bootstrap interval (percentiles; Efron and Tibshirani, 1993) of 95 %."""

    value: float
    low: float
    high: float
    count: int
    """Questions that it rests on: prompts, pictures, pairs."""


def share(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """First column of the second."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1e-12))


def figure(rows: ArrayLike, of: Statistic, seed: int = 0) -> Figure:
    """A function of sums over questions.

    Args:
        rows: what each question adds to the sums, (questions, columns).
    """
    table = np.asarray(rows, float)
    return _figure(of(table.sum(0)), of(_resample(table, seed)), len(table))


def mean(values: ArrayLike, seed: int = 0) -> Figure:
    """The mean of one number a question."""
    column = np.asarray(values, float).reshape(-1, 1)
    return figure(np.hstack([column, np.ones_like(column)]), share, seed)


def mean_of_means(groups: Sequence[ArrayLike], seed: int = 0) -> Figure:
    """The unweighted mean of the groups' means; each group is resampled by itself."""
    tables = [np.asarray(group, float).reshape(-1, 1) for group in groups]
    drawn = [_resample(table, seed + i)[:, 0] / len(table) for i, table in enumerate(tables)]
    value = np.mean([table.mean() for table in tables])
    return _figure(value, np.mean(drawn, 0), sum(map(len, tables)))


def _resample(table: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Sums over as many questions drawn with replacement, (DRAWS, columns)."""
    count = len(table)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    sums: NDArray[np.float64] = drawn @ table
    return sums


def _figure(value: float | NDArray[np.float64], drawn: NDArray[np.float64], count: int) -> Figure:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Figure(float(value), float(low), float(high), count)
