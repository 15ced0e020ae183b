"""What a run says of itself while it trains: lines in `progress.jsonl`, a log, a bar on a terminal, curves."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from workers.lab.training import distributed
from workers.lab.training.checkpoint import write_atomically

log = logging.getLogger(__name__)

console = Console(stderr=True)
"""Where logs and the bar go, so that neither writes over the other."""

REDRAW_SECONDS = 30.0


class Progress:
    """Figures of a run over time; only the first of several processes says anything."""

    def __init__(self, run: Path, step: int, steps: int, name: str):
        """Drops what a killed process wrote after the checkpoint at `step`: it will be written again."""
        self.run, self.path = run, run / "progress.jsonl"
        self.drawn = time.monotonic()
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            # Redirected, the lines of the log say the same.
            disable=not (console.is_terminal and distributed.first()),
        )
        self.task = self.bar.add_task(name, total=steps, completed=step, figures="")
        if distributed.first():
            kept = [line for line in read_progress(self.path) if line["step"] <= step]
            write_atomically(self.path, "".join(f"{json.dumps(line)}\n" for line in kept).encode())

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()
        self.draw()

    def advance(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def write(self, step: int, figures: Mapping[str, float], seconds: float) -> None:
        if not distributed.first():
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds, 1), **figures}) + "\n")
        shown = "  ".join(f"{name} {figure:.4g}" for name, figure in figures.items())
        if "loss" in figures:
            self.bar.update(self.task, figures=f"loss {figures['loss']:.4g}")
        log.info("step %d  %.0f s  %s", step, seconds, shown)
        if time.monotonic() - self.drawn > REDRAW_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Draws the curves anew, beside the weights."""
        # A second to load, and only needed now.
        from workers.lab.training.curves import draw_curves

        self.drawn = time.monotonic()
        lines = read_progress(self.path) if distributed.first() else []
        if lines:
            draw_curves(lines, self.run / "curves.png")


def read_progress(path: Path) -> list[dict[str, Any]]:
    """The lines of a run; a last one that was cut off by a kill is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
