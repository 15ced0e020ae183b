"""The benchmark of checkpoints at its smallest: that it runs and measures, not what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shared.settings import Settings
from tests.bench.checkpoints import TOY, figures
from tuwen.jobs import Kind


def test_the_benchmark_measures_a_checkpoint_through_the_queue_and_alone(settings: Settings, tmp_path: Path) -> None:
    scale = replace(TOY, batches=(8,), count={Kind.DESCRIBE: 16}, tokens=8, seconds=0.0)
    [figure] = figures(settings, tmp_path, scale)
    assert figure.name == "describe, through the queue"
    assert figure.value > 0
    assert figure.base is not None
    assert figure.base > 0
