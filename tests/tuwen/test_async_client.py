"""What only the client to await can do: be cancelled, wait for many things at a time. And what keeps the two alike."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psutil
import pytest

import tuwen
from shared.settings import Settings
from tests.support.api_server import FakeWorker, png, serving
from tests.support.waiting import eventually
from tuwen import AsyncClient, Client
from tuwen.blocking import complete
from tuwen.dataset_client import AsyncDatasetClient, DatasetClient
from tuwen.errors import NotFound, Unavailable
from tuwen.exchange import EventParser
from tuwen.jobs import Job, Status


def run(body: Callable[[AsyncClient, str], Awaitable[None]], settings: Settings) -> None:
    """`body` with a client of a real API, and its address."""

    async def connected(url: str) -> None:
        async with AsyncClient(url) as client:
            await body(client, url)

    with serving(settings) as url:
        asyncio.run(connected(url))


def connections(url: str) -> int:
    """Count the connections that the API, which runs in this process, holds open."""
    port = urlsplit(url).port
    return sum(
        bool(each.laddr) and each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED
        for each in psutil.Process().net_connections("tcp")
    )


def test_many_jobs_are_awaited_at_a_time(settings: Settings, hand: FakeWorker) -> None:
    async def body(client: AsyncClient, url: str) -> None:
        jobs = await asyncio.gather(*(client.generate(f"cat {number}") for number in range(20)))
        waiting = asyncio.gather(*(client.wait(job.id) for job in jobs))
        await asyncio.to_thread(_do, hand, jobs)
        assert {job.status for job in await waiting} == {Status.SUCCEEDED}

    run(body, settings)


def _do(hand: FakeWorker, jobs: list[Job]) -> None:
    for job in jobs:
        hand.claim(job.id)
        hand.succeed(job.id, png())


def test_cancelling_who_watches_closes_the_stream(settings: Settings) -> None:
    async def body(client: AsyncClient, url: str) -> None:
        job = await client.generate("a cat")
        watched = asyncio.Event()

        async def watch() -> None:
            async for _ in client.iter_events(job.id):
                watched.set()

        before = await asyncio.to_thread(connections, url)
        watching = asyncio.create_task(watch())
        await watched.wait()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        await asyncio.to_thread(eventually, lambda: connections(url) < max(before, 1))
        assert (await client.get(job.id)).status is Status.QUEUED

    run(body, settings)


def test_leaving_the_events_early_closes_the_stream(settings: Settings) -> None:
    async def body(client: AsyncClient, url: str) -> None:
        job = await client.generate("a cat")
        async with aclosing(client.iter_events(job.id)) as events:
            assert await anext(events) == job
            assert await asyncio.to_thread(connections, url) == 1
        await asyncio.to_thread(eventually, lambda: connections(url) == 0)

    run(body, settings)


def test_an_await_ends_when_its_time_is_over(settings: Settings) -> None:
    async def body(client: AsyncClient, url: str) -> None:
        job = await client.generate("a cat")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.wait(job.id), 0.3)
        assert await client.cancel(job.id)
        assert (await client.wait(job.id)).status is Status.CANCELLED

    run(body, settings)


def test_retries_do_not_hold_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuwen.exchange.PAUSES", (0.5,))

    async def tick() -> int:
        ticks = 0
        while True:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                return ticks
            ticks += 1

    async def body() -> None:
        ticking = asyncio.create_task(tick())
        async with AsyncClient("http://127.0.0.1:9") as client:
            with pytest.raises(Unavailable):
                await client.get(UUID(int=1))
        ticking.cancel()
        assert await ticking > 5

    asyncio.run(body())


def test_the_block_closes_the_connections(settings: Settings) -> None:
    with serving(settings) as url:

        async def body() -> None:
            async with AsyncClient(url) as client:
                await client.models()
                assert await asyncio.to_thread(connections, url) == 1
            await asyncio.to_thread(eventually, lambda: connections(url) == 0)
            with pytest.raises(RuntimeError, match="closed"):
                await client.models()

        asyncio.run(body())


def test_the_client_that_blocks_works_inside_an_event_loop_too(settings: Settings) -> None:
    """The cells of a notebook run in one."""

    async def body(_: AsyncClient, url: str) -> None:
        with Client(url) as client:
            job = client.generate("a cat")
            assert next(client.iter_events(job.id)) == job
            assert [*client.iter_jobs()] == [job]
            with pytest.raises(NotFound):
                client.get(UUID(int=1))

    run(body, settings)


@pytest.mark.parametrize(("waits", "blocks"), [(AsyncClient, Client), (AsyncDatasetClient, DatasetClient)])
def test_both_have_the_same_methods(waits: type, blocks: type) -> None:
    def public(kind: type) -> dict[str, Any]:
        return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}

    assert public(waits).keys() == public(blocks).keys()
    for name, method in public(blocks).items():
        assert inspect.getdoc(method) == inspect.getdoc(getattr(waits, name))
        if callable(method):
            assert not inspect.iscoroutinefunction(method)
            assert not inspect.isasyncgenfunction(method)
            parameters = inspect.signature(getattr(waits, name)).parameters
            assert inspect.signature(method).parameters == parameters


def test_what_waits_for_an_event_loop_is_not_run_without_one() -> None:
    with pytest.raises(RuntimeError, match="event loop"):
        complete(asyncio.sleep(0))


def test_events_are_the_same_wherever_the_stream_is_cut() -> None:
    stream = 'event: state\ndata: {"a": "图\u2028文"}\n\n: still here\n\nevent: progress\ndata: {}\n\n'.encode()
    whole = [*EventParser().feed(stream)]
    assert whole == [("state", '{"a": "图\u2028文"}'), ("progress", "{}")]
    for cut in range(len(stream)):
        parser = EventParser()
        assert [*parser.feed(stream[:cut]), *parser.feed(stream[cut:])] == whole


def test_every_public_name_is_found_without_what_it_does_not_need() -> None:
    for name in tuwen.__all__:
        assert getattr(tuwen, name) is not None
    assert {*tuwen.__all__} <= {*dir(tuwen)}
    with pytest.raises(AttributeError, match="has no attribute"):
        tuwen.nothing_of_this_name  # noqa: B018
    program = "import sys, tuwen.engine; from tuwen import JobRequest, errors; print('httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n", "engines and servers need no HTTP client for it"
