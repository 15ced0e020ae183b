"""What the requests of one API process share, from start-up to shutdown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from api.http.auth import Keyring
from api.producer.events import Events
from api.producer.outbox import Outbox
from shared.database import Database
from shared.objects.dataset_index import DatasetIndex
from shared.objects.storage import ObjectStore
from shared.queue import JobQueue
from shared.settings import Settings

_HEAVY_AT_ONCE = 2
_LONGEST = 60.0
"""Seconds that a statement of a request may take: steering a data set of a million shards is the longest."""


@dataclass(frozen=True, slots=True)
class Resources:
    settings: Settings
    database: Database
    store: ObjectStore
    events: Events
    outbox: Outbox
    keyring: Keyring | None
    """None when the installation is open."""
    index: DatasetIndex
    heavy: CapacityLimiter
    """Turns for what holds whole images in memory."""


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Resources]:
    """Raises ConfigurationError. No server needs to be up for this: requests say what is missing."""
    store = ObjectStore.open(settings)
    database = Database(settings, longest=_LONGEST)
    queue = JobQueue(settings)
    events = Events(settings, database)
    outbox = Outbox(database, queue)
    keyring = Keyring(database) if settings.auth == "keys" else None
    events.start()
    try:
        index = DatasetIndex(database, store)
        yield Resources(settings, database, store, events, outbox, keyring, index, CapacityLimiter(_HEAVY_AT_ONCE))
    finally:
        await events.close()
        outbox.close()
        queue.close()
        database.close()


async def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


ResourcesDep = Annotated[Resources, Depends(_resources)]


async def _base_url(request: Request, resources: ResourcesDep) -> str:
    return (resources.settings.public_url or str(request.base_url)).rstrip("/")


BaseUrlDep = Annotated[str, Depends(_base_url)]
"""Where clients reach this API, without a slash at the end."""
