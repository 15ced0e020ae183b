"""What docker-compose.yml describes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.compose import compose


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Each service of docker-compose.yml, with its variables filled in."""
    found: dict[str, Any] = compose()["services"]
    return found
