"""Measures that several models share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Area under the ROC curve: how often a positive scores above a negative; ties count half (Mann-Whitney U)."""
    high, low = np.asarray(positive, float), np.sort(np.asarray(negative, float))
    below = np.searchsorted(low, high, "left")
    equal = np.searchsorted(low, high, "right") - below
    return float((below + equal / 2).sum() / (len(high) * len(low)))


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: distance of confidence from frequency, averaged over bins of equal width."""
    p, y = np.asarray(probabilities, float), np.asarray(labels, float)
    which = np.minimum((p * bins).astype(int), bins - 1)
    error = sum(abs(p[which == b].sum() - y[which == b].sum()) for b in range(bins))
    return float(error / len(p))
