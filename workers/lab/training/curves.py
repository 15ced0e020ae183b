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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as missing:
    raise ConfigurationError("Curves need matplotlib: pip install 'tuwen[training]'.") from missing

Line = Mapping[str, Any]
"""One line of `progress.jsonl`: the step, the seconds so far and figures."""

COLUMNS = 3
SMOOTHED = 0.8
"""Share of the running mean that each further point leaves as it was."""
MANY = 20
"""Points beyond which a curve is drawn with its running mean."""


def draw_curves(lines: Sequence[Line], path: Path) -> None:
    """Writes a picture of all figures in `lines` to `path` (PNG); noisy ones with their running mean."""
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("step", "seconds")))
    rows = max(1, math.ceil(len(names) / COLUMNS))
    # Pyplot would keep figures for good, and needs a screen on some systems.
    figure = Figure(figsize=(4 * COLUMNS, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes, name in zip(panels.flat, names, strict=False):
        known = [line for line in lines if name in line]
        steps = [line["step"] for line in known]
        values = [line[name] for line in known]
        _draw_curve(axes, name, steps, values)
    for axes in figure.axes[len(names) :]:
        axes.remove()
    content = BytesIO()
    figure.savefig(content, format="png", dpi=80)
    write_atomically(path, content.getvalue())


def _draw_curve(axes: Axes, name: str, steps: Sequence[int], values: Sequence[float]) -> None:
    if len(values) > MANY:
        axes.plot(steps, values, color="tab:blue", alpha=0.35)
        axes.plot(steps, running_mean(values), color="tab:blue")
    else:
        # A line through few points would hardly be seen.
        axes.plot(steps, values, color="tab:blue", marker=".")
    axes.set_title(f"{name}: {values[-1]:.4g}", fontsize=10)
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)


def running_mean(values: Sequence[float], keep: float = SMOOTHED) -> list[float]:
    """Exponential running mean without the bias towards its start (as Adam corrects its moments)."""
    means = []
    mean = weight = 0.0
    for value in values:
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + 1 - keep
        means.append(mean / weight)
    return means
