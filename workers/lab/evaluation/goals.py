"""What the shipped weights are to reach, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workers.lab.evaluation.prompts import COLUMNS


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure, what it has to reach at least, and what it aims at."""

    what: str
    least: float
    aim: float
    measured: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    """Unit of a figure where less is better; shares, of which more is better, have none."""

    @property
    def verdict(self) -> str:
        """How far the figure got: "aim", "reached" or "missed"."""

        def reached(bound: float) -> bool:
            return self.measured <= bound if self.unit else self.measured >= bound

        if reached(self.aim):
            return "aim"
        return "reached" if reached(self.least) else "missed"


SHARES: dict[str, dict[str, tuple[float, float]]] = {
    "recognition macro-F1": {"seen": (0.97, 0.995), "unseen": (0.90, 0.98)},
    "caption scene-graph F1": {"seen": (0.95, 0.99), "unseen": (0.85, 0.97)},
    "GenEval protocol (closed domain), mean of six tags, @1": {
        "seen": (0.75, 0.96),
        "unseen": (0.60, 0.90),
    },
    "the same, best of 4 by the matcher": {"seen": (0.85, 0.98), "unseen": (0.70, 0.95)},
    "R-precision (1 of 100)": {"seen": (0.90, 0.99), "unseen": (0.90, 0.99)},
    "judge on true renders": {"seen": (0.98, 0.995), "unseen": (0.98, 0.995)},
}
"""Least and aim, by the split of the combinations."""
OUTSIDE = (0.95, 0.99)
HONOURED = (0.90, 0.98)
NOT_SILENT = (0.95, 1.0)
MILLISECONDS = {"image": (500.0, 50.0), "caption": (200.0, 20.0)}


def goals(report: Mapping[str, Any]) -> list[Goal]:
    """The table for the sections that a report has."""
    found = [goal for column in COLUMNS for goal in _shares(report, column)]
    order = list(SHARES)
    found.sort(key=lambda goal: order.index(goal.what.split(": ")[0]))
    for model, told in report.get("outside", {}).items():
        found.append(Goal(f"out-of-domain AUROC: {model}", *OUTSIDE, told["auroc_mean_of_kinds"]))
    if "by_hand" in report:
        shares = report["by_hand"]["held_out"]["feasible"]
        honoured, wrong = shares["honoured"], shares["silently wrong"]
        what = "hand-written feasible prompts, held out"
        found.append(
            Goal(f"{what}: honoured in all of 8", *HONOURED, honoured["value"], honoured["low"], honoured["high"])
        )
        not_wrong = (1 - wrong[key] for key in ("value", "high", "low"))
        found.append(Goal(f"{what}: honoured or said", *NOT_SILENT, *not_wrong))
    speed: Mapping[str, Any] = report.get("speed", {})
    for name, bounds in MILLISECONDS.items() if speed else ():
        taken = speed["threads"][str(speed["cores"])][name]["median_ms"]
        found.append(Goal(f"one {name}, {speed['cores']} CPU cores", *bounds, taken, unit="ms"))
    return found


def _shares(report: Mapping[str, Any], column: str) -> Iterator[Goal]:
    def goal(what: str, detail: str, figure: Mapping[str, float]) -> Goal:
        name = f"{what}: {', '.join(filter(None, [detail, column]))}"
        return Goal(name, *SHARES[what][column], figure["value"], figure["low"], figure["high"])

    recognition, captions, at_1, best, pair, judge = SHARES
    if "recognition" in report:
        yield goal(recognition, "", report["recognition"][column]["macro_f1"])
    for language, styles in report.get("description", {}).get(column, {}).items():
        yield goal(captions, language, styles["short"]["f1"])
    if "generation" in report:
        yield goal(at_1, "", report["generation"][column]["mean"]["at_1"])
        yield goal(best, "", report["generation"][column]["mean"]["best"])
    if "pairs" in report:
        yield goal(pair, "captions", report["pairs"][column]["r_precision"]["text"])
        yield goal(pair, "pictures", report["pairs"][column]["r_precision"]["image"])
    if "judge" in report:
        yield goal(judge, "", report["judge"][column]["mean"]["ceiling"])
