"""Measures that several models share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from workers.lab.training.outliers import FAMILIES, HELD_OUT, make_outliers

Data = TypeVar("Data")


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Area under the ROC curve: how often a positive scores above a negative; ties count half (Mann-Whitney U)."""
    high = np.asarray(positive, float)
    low = np.sort(np.asarray(negative, float))
    below = np.searchsorted(low, high, "left")
    equal = np.searchsorted(low, high, "right") - below
    wins = (below + equal / 2).sum()
    return float(wins / (len(high) * len(low)))


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: distance of confidence from frequency, averaged over bins of equal width."""
    p = np.asarray(probabilities, float)
    y = np.asarray(labels, float)
    which = np.minimum((p * bins).astype(int), bins - 1)
    error = 0.0
    for number in range(bins):
        inside = which == number
        error += abs(p[inside].sum() - y[inside].sum())
    return float(error / len(p))


def measure_domain(
    domain_logits: Callable[[NDArray[np.uint8]], Tensor],
    pixels: NDArray[np.uint8],
    seed: int = 1,
) -> dict[str, float]:
    """How well a model tells pictures of the drawn world from others.

    Args:
        domain_logits: from pictures, uint8 (B, H, W, 3), to logits (B,) of being of the drawn world.
        pixels: pictures of the drawn world.

    Returns:
        Area under the ROC curve for families of outliers met in training, and for those held out; share of true
        pictures that are taken for outliers, and of held-out outliers that are not.
    """
    rng = np.random.default_rng(seed)
    inside = domain_logits(pixels)
    met = domain_logits(make_outliers(500, rng, pixels, FAMILIES))
    held_out = domain_logits(make_outliers(500, rng, pixels, HELD_OUT))
    return {
        "outliers_met": auroc(inside, met),
        "outliers_held_out": auroc(inside, held_out),
        "true_refused": float((inside < 0).float().mean()),
        "outliers_admitted": float((held_out >= 0).float().mean()),
    }


def measure_splits(
    figures: Callable[[Any, Data], Mapping[str, float]], model: Any, splits: Mapping[str, Data]
) -> dict[str, float]:
    """The figures of the model on each split, named `<split>/<figure>`."""
    found: dict[str, float] = {}
    for name, data in splits.items():
        for key, value in figures(model, data).items():
            found[f"{name}/{key}"] = value
    return found
