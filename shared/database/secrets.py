"""Secrets that all processes of an installation share, and that nobody has to choose: made when first needed."""

from __future__ import annotations

import secrets as random

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.database.connections import Connections
from shared.database.tables import SecretRow

_LENGTH = 32


class Secrets:
    """Random secrets by name, each the same in every process."""

    def __init__(self, connections: Connections):
        self._run = connections.run

    def get(self, name: str) -> bytes:
        """The secret of this name, 32 random bytes; it is made if there is none."""
        known = select(SecretRow.value).where(SecretRow.name == name)
        if not (rows := self._run(known)):
            # Of several processes that get here together, the first one's secret counts.
            new = upsert(SecretRow).values(name=name, value=random.token_bytes(_LENGTH))
            self._run(new.on_conflict_do_nothing())
            rows = self._run(known)
        return bytes(rows[0].value)
