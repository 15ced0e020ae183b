"""What the worker and its engine process say to each other, in the order of a life: see `host.py` and `engine.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tuwen.engine import Item, Output, Partial
from tuwen.errors import TuwenError
from tuwen.jobs import Kind
from workers.inference.residents import Key

Answer = Output | TuwenError

SLOTS = 4096
"""Most items of one batch: each has a byte of shared memory with what the parent says of it while it runs."""
CANCELLED, WATCHED = 1, 2
"""Bits of such a byte: nobody waits for the item any more; somebody would like to see what there is of it so far."""


@dataclass(frozen=True, slots=True)
class Batch:
    kind: Kind
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class LimitQuestion:
    kind: Kind
    item: Item


@dataclass(frozen=True, slots=True)
class Loading:
    """The next model's turn has come, or it got further; if the process dies now, this one is to blame."""

    kind: Kind
    spec: str
    stage: str = ""
    """What is being done, in words."""
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
    step: int
    steps: int
    parts: Mapping[int, Partial]
    """What there is of the items that are watched, by their index."""


@dataclass(frozen=True, slots=True)
class Answers:
    answers: list[Answer]
    warm: frozenset[Key]
    """Which models are loaded now."""


@dataclass(frozen=True, slots=True)
class Limit:
    limit: int
    warm: frozenset[Key]


@dataclass(frozen=True, slots=True)
class Failed:
    """The request as a whole failed; `trace` is for the log where nobody foresaw it."""

    error: TuwenError
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The process is of no more use and ends itself, for the reason in `detail`."""

    detail: str
    trace: str
