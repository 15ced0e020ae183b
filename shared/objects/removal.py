"""Removal of objects whose row is gone, at once where that is safe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from shared.database import Database
from shared.objects.storage import ObjectStore
from shared.settings import Settings
from tuwen.errors import NotFound

Unreferenced = Callable[[Sequence[str]], list[str]]
"""Returns those of the given keys that no row names."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of objects that a deleted row named."""

    removed: int = 0
    left: int = 0
    """They are too young, and nothing names them: the housekeeper collects them."""


class Remover:
    """Removes objects that no row names any more, unless they are younger than `orphan_age`.

    The same picture has one object, whoever it was made for. Another worker may just have found it there and be about
    to write the row that names it; it would have stored an old one again (`ObjectStore.put_once`).
    """

    def __init__(self, settings: Settings, database: Database, store: ObjectStore):
        self._age = timedelta(seconds=settings.orphan_age)
        self._unreferenced = database.jobs.unreferenced
        self._store = store

    def remove(self, keys: Sequence[str]) -> Removal:
        """Remove what these keys name. Raises StorageUnavailable; what is left then is collected by the housekeeper."""
        orphans = self._unreferenced(list(dict.fromkeys(keys))) if keys else []
        before = datetime.now(UTC) - self._age
        removed = sum(remove_if_old(self._store, key, before) for key in orphans)
        return Removal(removed, len(orphans) - removed)

    def remove_own(self, keys: Sequence[str]) -> Removal:
        """Remove objects whose key is made for one row alone: nothing else will name them."""
        for key in keys:
            self._store.delete(key)
        return Removal(len(keys))


def remove_if_old(store: ObjectStore, key: str, before: datetime) -> bool:
    """Remove an object that was last written before that time; returns whether it is gone.

    Looked at just before: the same bytes may have been stored again since the object was found.
    """
    with suppress(NotFound):
        if store.head(key).last_modified >= before:
            return False
        store.delete(key)
    return True
