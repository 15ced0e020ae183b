"""What a run says of itself."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from workers.lab.training import progress
from workers.lab.training.curves import draw_curves, running_mean
from workers.lab.training.progress import TrainingLog, read_progress


def test_curves_show_every_figure(tmp_path: Path) -> None:
    lines = [{"step": step, "seconds": 1.0, "loss": 1 / step} for step in range(1, 60)]
    draw_curves(lines, tmp_path / "one.png")
    draw_curves([*lines, {"step": 60, "seconds": 1.0, "a": 0.1, "b": 0.2, "c": 0.3}], tmp_path / "four.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "four.png") as four:
        assert four.height == 2 * one.height
        # A line beside the grid and the letters: many shades of blue.
        blues = {colour for _, colour in one.convert("RGB").getcolors(10**6) or [] if colour[2] > colour[0] + 60}
        assert len(blues) > 5


def test_the_running_mean_is_not_drawn_towards_its_start() -> None:
    assert running_mean([4.0, 4.0, 4.0]) == pytest.approx([4.0, 4.0, 4.0])
    assert running_mean([0.0, 1.0], keep=0.5) == pytest.approx([0.0, 2 / 3])


def test_what_a_killed_process_wrote_after_its_checkpoint_is_dropped(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 0.5}) for step in (4, 8, 12)]
    (tmp_path / "progress.jsonl").write_text("\n".join([*lines, '{"step": 16, "lo']))
    with TrainingLog(tmp_path, 8, 20, "run") as shown:
        shown.write(12, {"loss": 0.25}, 3.0)
    found = [(line["step"], line["loss"]) for line in read_progress(tmp_path / "progress.jsonl")]
    assert found == [(4, 0.5), (8, 0.5), (12, 0.25)]
    assert (tmp_path / "curves.png").exists()


def test_a_terminal_shows_a_bar_and_a_pipe_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    for terminal in (True, False):
        output = io.StringIO()
        monkeypatch.setattr(progress, "console", Console(file=output, force_terminal=terminal, width=100))
        with TrainingLog(tmp_path / str(terminal), 5, 20, "matcher") as bar:
            bar.advance(7)
            bar.write(7, {"loss": 0.25}, 3.0)
        shown.append(output.getvalue())
    assert "matcher" in shown[0]
    assert "7/20" in shown[0]
    assert "loss 0.25" in shown[0]
    assert shown[1].strip() == ""
