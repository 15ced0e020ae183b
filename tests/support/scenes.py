"""The scene that tests and measurements use where any will do."""

from __future__ import annotations

from workers.scenes.grammar import Scene, Thing

EXAMPLE = Scene((Thing("cat", "black", "jumping"),), "grass", seed=1)
"""A black cat that jumps on the grass."""
