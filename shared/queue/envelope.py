"""Parsing of Celery's messages as they are in Redis, where anybody with access can put anything."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Envelope:
    """The parts of a well-formed task message."""

    id: UUID
    arguments: list[Any]


def parse_envelope(message: bytes) -> Envelope | None:
    """Parse what kombu's Redis transport wrote for a task with JSON arguments; None for anything else."""
    try:
        written = json.loads(message)
        id = task_id(written["headers"])
        arguments, *_ = json.loads(b64decode(written["body"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Envelope(id, arguments) if id is not None and isinstance(arguments, list) else None


def task_id(headers: object) -> UUID | None:
    """The task's id, which is that of the job or shard; None where the headers have none."""
    id = headers.get("id") if isinstance(headers, Mapping) else None
    try:
        return UUID(id) if isinstance(id, str) else None
    except ValueError:
        return None
