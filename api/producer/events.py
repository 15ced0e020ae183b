"""Events of jobs for those who watch them: one Redis subscription for a whole process.

A watcher subscribes before it reads the row, so it misses nothing in between. An event only says *read again*: clients
are shown the row in PostgreSQL. So a lost event is merely late, until the next poll, which is one query for all
watchers together, every few seconds, and every second while Redis is unavailable.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from uuid import UUID

from anyio.to_thread import run_sync
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.database import Database
from shared.queue import HOUSEKEEPER_PREFIX, event_channel, progress_key
from shared.queue.access import complaint_of_access
from shared.redis_place import RedisPlace
from shared.settings import Settings
from tuwen.errors import DatabaseUnavailable, QueueUnavailable
from tuwen.jobs import Progress, Status

log = logging.getLogger(__name__)

_LOOK_SUBSCRIBED = 5.0
_LOOK_ALONE = 1.0
_PING = 2.0
_SILENT = 6.0
"""Seconds without an answer after which Redis counts as gone."""
_ANSWER = 0.5
"""Seconds that Redis may take for optional information, such as the progress of a job."""
_AWAY = 2.0
"""Seconds for which Redis is not asked again after it did not answer."""

Change = Status | Progress
Answer = TypeVar("Answer")


class Watch:
    """The state of one watcher: holds only the latest change, so a slow reader costs nothing."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._status: Status | None = None
        self._progress: Progress | None = None
        self._seen: Status | None = None

    def note(self, status: Status) -> None:
        """Note the state that the watcher has just read from the row."""
        self._seen = status

    async def next(self, timeout: float) -> Change | None:
        """Wait for the latest change, a state before a progress; None when there was none for `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._news.wait()
        change: Change | None
        if self._status is not None:
            change, self._status = self._status, None
        else:
            change, self._progress = self._progress, None
        if self._progress is None:
            self._news.clear()
        return change

    def tell(self, change: Change) -> None:
        """Note a change, for the watcher to take with `next`; a newer progress replaces an unread one."""
        if isinstance(change, Progress):
            self._progress = change.merge(self._progress)
        else:
            self._status, self._progress = change, None
        self._news.set()

    def tell_if_new(self, status: Status) -> None:
        """Tell the watcher a state unless it knows it: a poll of PostgreSQL mostly finds known states."""
        if self._seen is not None and status is not self._seen:
            self.tell(status)


class JobEvents:
    """The subscription of one process, used in one event loop from `start` to `close`."""

    def __init__(self, settings: Settings, database: Database):
        self._database = database
        self._redis: Redis = RedisPlace(settings.redis_url).async_client(
            socket_connect_timeout=1,
            socket_timeout=_ANSWER,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._watches: dict[UUID, set[Watch]] = {}
        self._subscription: PubSub | None = None
        self._confirmed: dict[str, asyncio.Event] = {}
        self._order = asyncio.Lock()
        """Keeps the commands on the subscription in the order in which they were decided."""
        self._away_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start to listen to Redis and to poll PostgreSQL."""
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._look())]

    async def close(self) -> None:
        """Stop listening and polling."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._redis.aclose()

    @property
    def watched(self) -> int:
        """Number of jobs that are being watched now."""
        return len(self._watches)

    @asynccontextmanager
    async def watch(self, job_id: UUID) -> AsyncIterator[Watch]:
        """Collect the changes of a job, of any tenant; read its row inside the block."""
        watch = Watch()
        watches = self._watches.setdefault(job_id, set())
        watches.add(watch)
        try:
            await self._subscribe(job_id)
            yield watch
        finally:
            watches.discard(watch)
            if not watches and self._watches.get(job_id) is watches:
                del self._watches[job_id]
                # Shielded, because this may run while the request is being cancelled.
                await asyncio.shield(self._unsubscribe(job_id))

    async def progress(self, job_ids: Iterable[UUID]) -> dict[UUID, Progress]:
        """The latest progress of each of these jobs that reported one in the last minute; empty when Redis is down."""
        ids = list(job_ids)
        if not ids:
            return {}
        try:
            found = await self.ask(self._redis.mget([progress_key(id) for id in ids]))
        except QueueUnavailable:
            return {}
        return {id: Progress.model_validate_json(text) for id, text in zip(ids, found, strict=True) if text}

    async def hashes(self, keys: Iterable[str]) -> list[dict[str, str]]:
        """Read Redis hashes. Raises QueueUnavailable."""
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.hgetall(key)
        return list(await self.ask(pipeline.execute()))

    async def housekeepers(self) -> int:
        """How many hosts have a housekeeper that works. Raises QueueUnavailable."""
        return await self.ask(self._count(f"{HOUSEKEEPER_PREFIX}*"))

    async def _count(self, pattern: str) -> int:
        return sum([1 async for _ in self._redis.scan_iter(pattern, count=1000)])

    async def ping(self) -> None:
        """Raises QueueUnavailable."""
        await self.ask(self._redis.ping())

    async def ask(self, question: Awaitable[Answer]) -> Answer:
        """Await an answer of Redis; fail at once if it was silent a moment ago, so that no request waits twice."""
        if time.monotonic() < self._away_until:
            if isinstance(question, Coroutine):
                question.close()  # nobody awaits it
            raise QueueUnavailable("Redis does not answer; try again.", retry_after=_AWAY)
        try:
            async with asyncio.timeout(2 * _ANSWER):
                return await question
        except (RedisError, OSError, TimeoutError) as error:
            self._away_until = time.monotonic() + _AWAY
            said = complaint_of_access(error) or "Redis does not answer; try again."
            raise QueueUnavailable(said, retry_after=_AWAY) from error

    # ── the subscription ──────────────────────────────────────────────────────────────────────────

    async def _subscribe(self, job_id: UUID) -> None:
        """Subscribe and wait until Redis confirms, or is clearly down: then polling PostgreSQL has to suffice."""
        channel = event_channel(job_id)
        try:
            async with asyncio.timeout(_ANSWER):
                async with self._order:
                    if self._subscription is None:
                        return
                    if channel not in self._confirmed:
                        self._confirmed[channel] = asyncio.Event()
                        await self._subscription.subscribe(channel)
                    confirmed = self._confirmed[channel]
                await confirmed.wait()
        except (RedisError, OSError, TimeoutError) as error:
            log.debug("not subscribed to %s: %s", channel, error)

    async def _unsubscribe(self, job_id: UUID) -> None:
        channel = event_channel(job_id)
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_ANSWER), self._order:
                # Unless another watcher has come meanwhile.
                if job_id in self._watches or self._subscription is None or channel not in self._confirmed:
                    return
                del self._confirmed[channel]
                await self._subscription.unsubscribe(channel)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as subscription:
                    await self._receive(subscription)
            except (RedisError, OSError, TimeoutError) as error:
                log.debug("the channel of job events is down: %s", error)
            except Exception:
                log.exception("the channel of job events failed")
            finally:
                self._subscription = None
                self._confirmed.clear()
            await asyncio.sleep(_LOOK_ALONE)

    async def _receive(self, subscription: PubSub) -> None:
        async with self._order:
            channels = [event_channel(job_id) for job_id in self._watches]
            # One more channel, to which nobody publishes: without any channel, a broken connection would go unnoticed.
            await subscription.subscribe("tuwen:api", *channels)
            self._confirmed = {channel: asyncio.Event() for channel in channels}
            self._subscription = subscription
        await self._look_once()  # for changes while nobody listened
        heard = time.monotonic()
        while True:
            message = await subscription.get_message(timeout=_PING)
            if message is not None:
                heard = time.monotonic()
                self._hear(message)
            elif time.monotonic() - heard > _SILENT:
                raise TimeoutError(f"nothing heard for {_SILENT:g} s")
            else:
                await subscription.ping()

    def _hear(self, message: dict[str, Any]) -> None:
        channel = message["channel"]
        if message["type"] == "subscribe":
            confirmed = self._confirmed.get(channel)
            if confirmed:
                confirmed.set()
            return
        if message["type"] != "message":
            return
        try:
            watches = self._watches.get(UUID(channel.rpartition(":")[2]), ())
            change = _change(json.loads(message["data"]))
        except (ValueError, KeyError, TypeError):
            log.warning("not a job event on %s", channel)  # anybody who reaches Redis can publish
            return
        for watch in watches:
            watch.tell(change)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_ALONE if self._subscription is None else _LOOK_SUBSCRIBED)
            await self._look_once()

    async def _look_once(self) -> None:
        if not self._watches:
            return
        try:
            statuses = await run_sync(self._database.jobs.statuses, list(self._watches))
        except DatabaseUnavailable as error:
            log.debug("cannot poll PostgreSQL: %s", error)
            return
        for job_id, status in statuses.items():
            for watch in self._watches.get(job_id, ()):
                watch.tell_if_new(status)


def _change(event: dict[str, Any]) -> Change:
    return Status(event["status"]) if "status" in event else Progress.model_validate(event["progress"])
