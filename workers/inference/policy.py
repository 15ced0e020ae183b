"""The policy of an installation for its models, the same for every engine of a worker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """Crosses to the engine process with the models' names."""

    unpinned: bool = False
    """Whether a checkpoint from the hub may come without a commit; for development."""
    memory_budget: int | None = None
    """Bytes for all models of the worker, weights and work; None means what the device has, and no bound on a CPU."""
    safety: str | None = None
    """`import:module:function` of a filter; see `workers.inference.safety`."""
