"""What tests of training share."""

from __future__ import annotations

import pytest

from workers.lab.training.progress import TrainingLog


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves would take most of the time; `test_progress.py` looks at them."""
    monkeypatch.setattr(TrainingLog, "draw", lambda _: None)
