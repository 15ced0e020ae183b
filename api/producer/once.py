"""`Idempotency-Key`: a request that is repeated with its key is answered again, and does nothing a second time."""

from __future__ import annotations

from hashlib import sha256
from typing import Annotated

from fastapi import Header

from shared.database.idempotency import Once
from tuwen.errors import InvalidRequest

_LONGEST = 255

IdempotencyKey = Annotated[
    str | None,
    Header(
        description="text of your choice, 1 to 255 printable ASCII characters: repeating the request with it within a "
        "day does nothing again and is answered again; with another request it is refused"
    ),
]


def require_sendable(key: str) -> None:
    """Raises InvalidRequest: the key is empty, too long, or not ASCII."""
    if not (0 < len(key) <= _LONGEST and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {_LONGEST} printable ASCII characters.", field="Idempotency-Key"
        )


def once(key: str | None, *asked: str) -> Once | None:
    """The key with the hash of what is asked for: the route and all that the request says; None without a key.

    Raises:
        InvalidRequest: the key is empty, too long, or not ASCII.
    """
    if key is None:
        return None
    require_sendable(key)
    return Once(key, sha256("\n".join(asked).encode("utf-8", "replace")).hexdigest())
