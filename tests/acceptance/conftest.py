"""A system of real processes for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.settings import Settings
from tests.support.system import System, running_system


@pytest.fixture
def system(settings: Settings, tmp_path: Path) -> Iterator[System]:
    """Starts with nothing but its servers; the test adds workers and housekeepers."""
    with running_system(settings, tmp_path) as system:
        yield system
