"""Messages between the worker and its engine process, in the order of its life: see `host.py` and `engine.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tuwen.engine import Item, Output, Partial
from tuwen.errors import TuwenError
from tuwen.jobs import Kind
from workers.inference.residents import Key

Answer = Output | TuwenError

SLOTS = 4096
"""Most items of one batch: each has a byte of shared memory for flags that the parent sets while it runs."""
CANCELLED, WATCHED = 1, 2
"""Bits of such a byte: nobody waits for the item any more; somebody wants to see its partial output."""


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Request to run the items, which share one batch key."""

    kind: Kind
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class LimitQuestion:
    """Request for the most items like `item` in one batch."""

    kind: Kind
    item: Item


@dataclass(frozen=True, slots=True)
class Loading:
    """The next model begins to load, or has got further; if the process dies now, this one is to blame."""

    kind: Kind
    spec: str
    stage: str = ""
    """The step that is under way, as text."""
    done: int = 0
    """Bytes so far."""
    size: int = 0
    """Bytes in all; 0 where nobody knows."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Every model is loaded and has run its example."""

    revisions: dict[Key, str]
    device_name: str
    warm: frozenset[Key]


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of the running batch."""

    step: int
    steps: int
    parts: Mapping[int, Partial]
    """Partial outputs of the watched items, by their index."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Reply to a `BatchRequest`, in the order of its items."""

    answers: list[Answer]
    warm: frozenset[Key]
    """The models that are loaded now."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Reply to a `LimitQuestion`."""

    limit: int
    warm: frozenset[Key]


@dataclass(frozen=True, slots=True)
class Failed:
    """The request as a whole failed; `trace` is for the log where the error was unexpected."""

    error: TuwenError
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The process is of no more use and ends itself, for the reason in `detail`."""

    detail: str
    trace: str


Request = BatchRequest | LimitQuestion
"""What the worker sends."""
Reply = Answers | Limit | Failed | Lost
"""What ends a request."""
Message = Loading | Ready | Step | Reply
"""What the engine process sends."""
