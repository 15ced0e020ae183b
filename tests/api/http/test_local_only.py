"""An open installation looks at where a request arrived, whatever the settings said."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.http.auth import LocalOnly
from shared.settings import Settings


def status(server: tuple[str, int | None], host: str, **settings: Any) -> int:
    sent: list[Any] = []

    async def app(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing to read")

    scope = {"type": "http", "method": "GET", "path": "/", "server": server, "headers": [(b"host", host.encode())]}
    asyncio.run(LocalOnly(app, Settings(**settings))(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("server", [("127.0.0.1", 8000), ("::1", 8000), ("/run/tuwen.sock", None)])
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000"])
def test_this_machine_is_served(server: tuple[str, int | None], host: str) -> None:
    assert status(server, host) == 200


@pytest.mark.parametrize("server", [("192.168.1.5", 8000), ("fe80::1", 8000), ("8.8.8.8", 80)])
def test_another_interface_is_not(server: tuple[str, int | None]) -> None:
    assert status(server, "localhost") == 403


def test_the_public_name_is_a_name_too() -> None:
    assert status(("127.0.0.1", 8000), "tuwen.example", public_url="https://tuwen.example/x") == 200
    assert status(("127.0.0.1", 8000), "other.example", public_url="https://tuwen.example/x") == 403
