"""Pictures of how a run went: one panel for each figure over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from tuwen.errors import ConfigurationError
from workers.lab.training.checkpoint import write_atomically

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as missing:
    raise ConfigurationError("Curves need matplotlib: pip install 'tuwen[training]'.") from missing

Line = Mapping[str, Any]
"""One line of `progress.jsonl`: the step, the seconds so far and figures."""

COLUMNS = 3
SMOOTHED = 0.8
"""Share of the running mean that each further point leaves as it was."""


def draw_curves(lines: Sequence[Line], path: Path) -> None:
    """Writes a picture of all figures in `lines` to `path` (PNG); noisy ones with their running mean."""
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("step", "seconds")))
    rows = max(1, math.ceil(len(names) / COLUMNS))
    # Not pyplot: it keeps figures for good and wants a screen on some systems.
    figure = Figure(figsize=(4 * COLUMNS, 2.6 * rows), layout="constrained")
    for axes, name in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, names, strict=False):
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color="tab:blue", alpha=0.35 if len(points) > 20 else 1.0, marker=_marker(points))
        if len(points) > 20:
            axes.plot(steps, running_mean(values), color="tab:blue")
        axes.set_title(f"{name}: {values[-1]:.4g}", fontsize=10)
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    for axes in figure.axes[len(names) :]:
        axes.remove()
    content = BytesIO()
    figure.savefig(content, format="png", dpi=80)
    write_atomically(path, content.getvalue())


def _marker(points: Sequence[object]) -> str:
    """Few points would hardly be seen as a line."""
    return "." if len(points) <= 20 else ""


def running_mean(values: Sequence[float], keep: float = SMOOTHED) -> list[float]:
    """Exponential running mean without the bias towards its start (as Adam corrects its moments)."""
    means, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + 1 - keep
        means.append(mean / weight)
    return means
