"""Resources that the requests of one API process share, from start-up to shutdown."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from api.http.auth import Keyring
from api.producer.events import JobEvents
from api.producer.outbox import Outbox
from shared.database import Database
from shared.intake.admission import Admission
from shared.objects.dataset_index import DatasetIndex
from shared.objects.signed_urls import UrlSigner
from shared.objects.storage import ObjectStore
from shared.queue import JobQueue
from shared.settings import Settings
from tuwen.errors import StorageUnavailable

_HEAVY_AT_ONCE = 2
_LONGEST = 60.0
"""Seconds that an SQL statement of a request may take; steering a data set of a million shards takes longest."""
_FRESH, _FAILED = 5.0, 1.0
"""Seconds for which storage that worked, or failed, is not looked at again."""


class StorageCheck:
    """Whether storage works, by a look that counts for some seconds: load balancers ask often, and a look writes."""

    def __init__(self, store: ObjectStore):
        self._store = store
        self._turn = threading.Lock()
        self._until = 0.0
        self._failure: StorageUnavailable | None = None

    def require(self) -> None:
        """Raise StorageUnavailable unless storage worked when it was last looked at."""
        with self._turn:
            if time.monotonic() >= self._until:
                try:
                    self._store.check()
                    self._failure = None
                except StorageUnavailable as error:
                    self._failure = error
                self._until = time.monotonic() + (_FAILED if self._failure else _FRESH)
            if self._failure:
                raise copy(self._failure)


@dataclass(frozen=True, slots=True)
class Resources:
    """The database, queue, store and caches of one API process."""

    settings: Settings
    database: Database
    store: ObjectStore
    storage_check: StorageCheck
    admission: Admission
    events: JobEvents
    outbox: Outbox
    keyring: Keyring | None
    """The API keys; None in an open installation."""
    index: DatasetIndex
    signer: UrlSigner
    heavy: CapacityLimiter
    """Limits how many requests hold whole images in memory at a time."""


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open the resources for a block. No server needs to be up yet: requests report what is missing.

    Raises:
        ConfigurationError
    """
    store = ObjectStore.open(settings)
    database = Database(settings, longest=_LONGEST)
    queue = JobQueue(settings)
    events = JobEvents(settings, database)
    outbox = Outbox(database, queue)
    keyring = Keyring(database, settings) if settings.auth == "keys" else None
    events.start()
    if keyring is not None:
        keyring.holds.start()
    try:
        index = DatasetIndex(database, store)
        admission = Admission(settings, database, store)
        yield Resources(
            settings,
            database,
            store,
            StorageCheck(store),
            admission,
            events,
            outbox,
            keyring,
            index,
            UrlSigner(settings, database),
            CapacityLimiter(_HEAVY_AT_ONCE),
        )
    finally:
        if keyring is not None:
            await keyring.holds.close()
        await events.close()
        outbox.close()
        queue.close()
        database.close()


async def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]
