"""What a run shows while it trains: lines in `progress.jsonl`, a log, a bar on a terminal, curves."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from workers.lab.training import distributed
from workers.lab.training.checkpoint import write_atomically

log = logging.getLogger(__name__)

console = Console(stderr=True)
"""Console of the logs and the bar, so that neither writes over the other."""

REDRAW_SECONDS = 30.0
"""Least time between two drawings of the curves."""


class TrainingLog:
    """Figures of a run over time; only the first of several processes writes and shows anything."""

    def __init__(self, run: Path, step: int, steps: int, name: str):
        """Drops what a killed process wrote after the checkpoint at `step`: it will be written again."""
        self.run = run
        self.path = run / "progress.jsonl"
        self.drawn = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            # Where the output goes to a file, the lines of the log say the same.
            disable=not (console.is_terminal and distributed.is_first()),
        )
        self.task = self.bar.add_task(name, total=steps, completed=step, figures="")
        if distributed.is_first():
            kept = [line for line in read_progress(self.path) if line["step"] <= step]
            write_atomically(self.path, "".join(f"{json.dumps(line)}\n" for line in kept).encode())

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.stop()
        self.draw()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self.bar.update(self.task, completed=step)

    def write(self, step: int, figures: Mapping[str, float], seconds: float) -> None:
        """Writes a line of figures after `step` steps and `seconds` of training, and shows it."""
        if not distributed.is_first():
            return
        with self.path.open("a") as file:
            line = {"step": step, "seconds": round(seconds, 1), **figures}
            file.write(json.dumps(line) + "\n")
        shown = "  ".join(f"{name} {figure:.4g}" for name, figure in figures.items())
        if "loss" in figures:
            self.bar.update(self.task, figures=f"loss {figures['loss']:.4g}")
        log.info("step %d  %.0f s  %s", step, seconds, shown)
        if time.monotonic() - self.drawn > REDRAW_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Draws the curves again, beside the weights."""
        # Matplotlib takes a second to load and is needed only now.
        from workers.lab.training.curves import draw_curves

        self.drawn = time.monotonic()
        lines = read_progress(self.path) if distributed.is_first() else []
        if lines:
            draw_curves(lines, self.run / "curves.png")


def read_progress(path: Path) -> list[dict[str, Any]]:
    """The lines of a run; a last one that was cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
