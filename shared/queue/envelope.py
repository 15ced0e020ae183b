"""Celery's messages as they lie in Redis, where anybody who reaches it can put anything."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message that is one, whatever it asks for."""

    id: UUID
    arguments: list[Any]


def opened(message: bytes) -> Envelope | None:
    """What kombu's Redis transport wrote for a task with JSON arguments; None where it wrote no such thing."""
    try:
        written = json.loads(message)
        id = task_id(written["headers"])
        arguments, *_ = json.loads(b64decode(written["body"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Envelope(id, arguments) if id is not None and isinstance(arguments, list) else None


def task_id(headers: Any) -> UUID | None:
    """The task's id, which is that of the job or shard; None where the headers have none."""
    try:
        return UUID(headers["id"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
