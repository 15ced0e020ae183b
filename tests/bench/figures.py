"""The figures that a benchmark reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value beside what it is measured against."""

    name: str
    value: float
    unit: str
    against: str = ""
    """The name of `base`."""
    base: float | None = None
    goal: str = ""
    """The project's goal, in words; a benchmark reports it and never fails because of it."""

    @property
    def ratio(self) -> float | None:
        return None if self.base is None else self.value / self.base


def percentile(values: list[float], percent: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]
