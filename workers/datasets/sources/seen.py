"""Sets and orders of more names than fit into memory: temporary SQLite databases, which spill to disk by themselves."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from hashlib import blake2b
from typing import Self


def temporary_database(cache: int = 4) -> sqlite3.Connection:
    """Make a database of this process alone, gone when closed; `cache` MB of it are in memory, the rest on disk."""
    database = sqlite3.connect("", isolation_level=None)
    database.execute(f"PRAGMA cache_size = -{cache * 1000}")
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("BEGIN")  # never committed: each statement in a transaction of its own is 20 times slower
    return database


class Seen:
    """A set of names that keeps 128 bits of each."""

    def __init__(self) -> None:
        self._database = temporary_database()
        self._database.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, name: str) -> bool:
        """Add `name`. Returns whether it is new."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (_digest(name),)).rowcount == 1

    def __contains__(self, name: str) -> bool:
        return self._database.execute("SELECT 1 FROM seen WHERE digest = ?", (_digest(name),)).fetchone() is not None

    def close(self) -> None:
        """Delete the temporary database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SortedNames:
    """Names in the order of their bytes: a list as long as they are few, a table when they are many."""

    def __init__(self, few: int = 4_000) -> None:
        self._few = few
        self._names: list[bytes] = []
        self._database: sqlite3.Connection | None = None

    def add(self, name: str) -> None:
        """Add a name; to be done before the names are read."""
        self._names.append(os.fsencode(name))
        if len(self._names) >= self._few:
            self._spill()

    def __iter__(self) -> Iterator[str]:
        """Yield the names; this can be done once."""
        if self._database is None:
            self._names.sort()
            names = iter(self._names)
        else:
            self._spill()
            names = (name for (name,) in self._database.execute("SELECT name FROM names ORDER BY name"))
        try:
            for name in names:
                yield os.fsdecode(name)
        finally:
            if self._database is not None:
                self._database.close()

    def _spill(self) -> None:
        if self._database is None:
            self._database = temporary_database()
            self._database.execute("CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID")
        self._names.sort()
        self._database.executemany("INSERT OR IGNORE INTO names VALUES (?)", ((name,) for name in self._names))
        self._names.clear()


def _digest(name: str) -> bytes:
    return blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()
