"""Requests to the API and its event streams: what is sent, what is tried again, and what an error becomes.

All of it is written once, as coroutines over a `Transport`, of which there are two: one awaits, the other blocks and
so never suspends the coroutine that uses it (see `tuwen.blocking`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
from pydantic import ValidationError

from tuwen.errors import TuwenError, Unauthorized, Unavailable, by_code
from tuwen.messages import Problem
from tuwen.version import __version__

PAUSES = (0.1, 0.4, 1.5, 3.0)
"""Seconds between attempts."""
LONGEST_PAUSE = 10.0
"""Seconds that a server's `Retry-After` is heeded for, at most."""
STREAM_SILENCE = 60.0
"""Seconds without even a comment after which an event stream is taken for dead; the API sends one every 15."""
STREAM_PATIENCE = 60.0
"""Seconds for which a lost stream is looked for: the job goes on meanwhile, and an API that restarts comes back."""

Stream = tuple[httpx.Response, AsyncIterator[bytes]]
"""An answer whose body is still to come, and the chunks of it."""


class Transport(Protocol):
    """Whatever an operation waits for."""

    @property
    def base_url(self) -> str:
        """Address of the API."""

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request; `options` are httpx's."""

    def stream(self, path: str, timeout: httpx.Timeout) -> AbstractAsyncContextManager[Stream]:
        """Open a stream, which is closed when the block ends."""

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds."""

    async def read(self, path: Path) -> bytes:
        """Read a file."""

    async def close(self) -> None:
        """Close the connections."""


class AwaitingTransport:
    """A transport that awaits, under asyncio."""

    def __init__(self, http: httpx.AsyncClient):
        self._http = http

    @property
    def base_url(self) -> str:
        return str(self._http.base_url)

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self._http.request(method, path, **options)

    @asynccontextmanager
    async def stream(self, path: str, timeout: httpx.Timeout) -> AsyncGenerator[Stream, None]:
        async with self._http.stream("GET", path, timeout=timeout) as response:
            yield response, response.aiter_bytes()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def read(self, path: Path) -> bytes:
        return await asyncio.to_thread(path.read_bytes)

    async def close(self) -> None:
        await self._http.aclose()


class BlockingTransport:
    """A transport that blocks: none of its coroutines is ever suspended."""

    def __init__(self, http: httpx.Client):
        self._http = http

    @property
    def base_url(self) -> str:
        return str(self._http.base_url)

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._http.request(method, path, **options)

    @asynccontextmanager
    async def stream(self, path: str, timeout: httpx.Timeout) -> AsyncGenerator[Stream, None]:
        with self._http.stream("GET", path, timeout=timeout) as response:
            yield response, _unsuspended(response.iter_bytes())

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def read(self, path: Path) -> bytes:
        return path.read_bytes()

    async def close(self) -> None:
        self._http.close()


async def _unsuspended(chunks: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    for chunk in chunks:
        yield chunk


def http_options(base_url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    """Return the arguments that httpx's client, of either sort, is made with.

    Raises:
        Unauthorized: no API key looks like this one.
    """
    headers = {"User-Agent": f"tuwen/{__version__}"}
    if api_key is not None:
        if not (api_key.isascii() and api_key.isprintable()):
            raise Unauthorized("This API key is not valid.")
        headers["Authorization"] = f"Bearer {api_key}"
    # A proxy from the environment is no way to one's own machine.
    local = urlsplit(base_url).hostname in ("localhost", "127.0.0.1", "::1")
    return {"base_url": base_url, "headers": headers, "timeout": timeout, "trust_env": not local}


def once() -> dict[str, str]:
    """A header that makes a request repeatable: the API does nothing for a second one, and answers it as the first."""
    return {"Idempotency-Key": str(uuid4())}


class Exchange:
    """Sends requests and follows event streams, by either transport."""

    def __init__(self, transport: Transport, timeout: float):
        """`timeout` bounds, in seconds, how long a server may be silent."""
        self.transport = transport
        self.timeout = timeout

    async def send(self, method: str, path: str, *, repeatable: bool = True, **options: Any) -> httpx.Response:
        """Send a request; return an answer that is no error. `repeatable`: sending it twice does no more than once.

        Raises:
            TuwenError: the API refused; the class that it raised.
            Unavailable: nothing answered, in several attempts where the request can be repeated.
        """
        for pause in (*PAUSES, None):
            try:
                return await self._send_once(method, path, **options)
            except Unavailable as error:
                never_arrived = isinstance(error.__cause__, httpx.ConnectError)
                if pause is None or not (repeatable or never_arrived):
                    raise
                await self.transport.sleep(min(max(pause, error.retry_after or 0), LONGEST_PAUSE))
        raise AssertionError("the last attempt returns or raises")

    async def follow(self, path: str) -> AsyncGenerator[tuple[str, str], None]:
        """Yield name and data of each server-sent event, without end: a stream that breaks or ends is taken up again.

        Raises:
            Unavailable: taking it up did not succeed within a minute.
            TuwenError: the API ended the stream with the event `error`, for this reason.
        """
        attempt, give_up = 0, time.monotonic() + STREAM_PATIENCE
        while True:
            try:
                async with aclosing(self._events(path)) as events:
                    async for event in events:
                        attempt, give_up = 0, time.monotonic() + STREAM_PATIENCE
                        name, data = event
                        if name == "error":
                            problem = Problem.model_validate_json(data)
                            raise by_code().get(problem.code, TuwenError)(problem.detail)
                        yield event
            except Unavailable:
                if time.monotonic() > give_up:
                    raise
            await self.transport.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
            attempt += 1

    async def _send_once(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self.transport.request(method, path, **options)
        except httpx.TransportError as error:
            raise self._silent(error) from error
        if response.is_error:
            raise error_of(response, response.content)
        return response

    async def _events(self, path: str) -> AsyncGenerator[tuple[str, str], None]:
        """Yield the events of one stream, until it ends."""
        timeout = httpx.Timeout(self.timeout, read=STREAM_SILENCE)
        try:
            async with self.transport.stream(path, timeout) as (response, chunks):
                if response.is_error:
                    raise error_of(response, b"".join([chunk async for chunk in chunks]))
                parser = EventParser()
                async for chunk in chunks:
                    for event in parser.feed(chunk):
                        yield event
        except httpx.TransportError as error:
            raise self._silent(error) from error

    def _silent(self, error: httpx.TransportError) -> Unavailable:
        return Unavailable(f"{self.transport.base_url} does not answer: {error}")


class EventParser:
    """Server-sent events (WHATWG HTML, section 9.2), from chunks of a stream that may be cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = self._data = ""

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str]]:
        """Yield name and data of each event that is complete with this chunk."""
        # Lines end in LF, and only there: text in JSON may hold what Unicode also calls a line's end.
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            field, _, value = line.decode().partition(": ")
            if field == "event":
                self._name = value
            elif field == "data":
                self._data = value
            elif not line and self._data:
                yield self._name, self._data
                self._name = self._data = ""


def error_of(response: httpx.Response, content: bytes) -> TuwenError:
    """Make the error that the API raised from the problem document that it answered."""
    error = _error_of(response, content)
    error.request_id = response.headers.get("x-request-id")
    return error


def _error_of(response: httpx.Response, content: bytes) -> TuwenError:
    retry_after = response.headers.get("retry-after", "")
    seconds = float(retry_after) if retry_after.isdigit() else None
    try:
        problem = Problem.model_validate_json(content)
    except ValidationError:
        # Not from the API: a proxy, or another server altogether.
        kind = Unavailable if response.status_code in (502, 503, 504) else TuwenError
        return kind(f"{response.url} answers {response.status_code} {response.reason_phrase}", retry_after=seconds)
    field = problem.errors[0].field if problem.errors else None
    kind = by_code().get(problem.code, TuwenError)
    return kind(problem.detail, field=field, retry_after=seconds)
