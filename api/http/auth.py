"""Who is calling: API keys, or anybody on this machine when the installation is open.

A key is `tw_` and 256 random bits. Only its SHA-256 is stored: for a secret that nobody can guess, a slow hash or a
salt would add nothing. Being found by its hash, a key is not compared letter by letter anywhere.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.problems import respond_to
from shared.database import Database
from shared.settings import Settings, is_loopback
from tuwen.errors import ConfigurationError, Forbidden, Unauthorized
from tuwen.jobs import Tenant

OPEN_TENANT = "local"
_KEY = re.compile(r"tw_[A-Za-z0-9_-]{43}", re.ASCII)
_CACHED = 1.0
"""Seconds for which a key that was found is believed; so long a revoked key may still work."""
_MOST_CACHED = 10_000
_LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request acts; `quota` bounds the unfinished jobs, none means no bound."""

    tenant: Tenant
    quota: int | None = None
    name: str | None = None
    """Of the key; none where everybody on this machine is served."""


def new_key() -> tuple[str, str]:
    """A fresh key, to be shown once, and the hash to be stored."""
    key = f"tw_{secrets.token_urlsafe(32)}"
    return key, key_hash(key)


def key_hash(key: str) -> str:
    return sha256(key.encode()).hexdigest()


class Keyring:
    """Finds the caller of a key. Thread-safe."""

    def __init__(self, database: Database):
        self._database = database
        self._known: dict[str, tuple[float, Caller]] = {}

    def cached(self, key: str) -> Caller | None:
        """The caller, when the key was looked up a moment ago."""
        entry = self._known.get(key_hash(key))
        return entry[1] if entry and entry[0] > time.monotonic() else None

    def caller(self, key: str) -> Caller:
        """Look the key up.

        Raises:
            Unauthorized: it is malformed, unknown or revoked; which of them is not said.
        """
        digest = key_hash(key)
        row = self._database.keys.find(digest) if _KEY.fullmatch(key) else None
        if row is None or not hmac.compare_digest(row.sha256, digest):
            raise Unauthorized("This API key is not valid.")
        caller = Caller(row.tenant, row.quota, row.name[:200] or row.tenant)
        if len(self._known) >= _MOST_CACHED:
            self._known.clear()
        self._known[digest] = (time.monotonic() + _CACHED, caller)
        return caller


_bearer = HTTPBearer(auto_error=False, description="API key, `tw_…`; made with `tuwen keys create`")


async def _caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Caller:
    keyring: Keyring | None = request.app.state.resources.keyring
    if keyring is None:
        return Caller(OPEN_TENANT)
    if credentials is None:
        raise Unauthorized("This needs an API key: send it as Authorization: Bearer tw_…")
    key = credentials.credentials
    caller = keyring.cached(key)
    return caller if caller is not None else await run_sync(keyring.caller, key)


CallerDep = Annotated[Caller, Depends(_caller)]


def require_loopback(settings: Settings) -> None:
    """An open installation must not be reachable from elsewhere.

    Raises:
        ConfigurationError: it would be.
    """
    if settings.auth == "open" and not is_loopback(settings.host):
        raise ConfigurationError(
            f"TUWEN_AUTH=open gives anybody who reaches {settings.host} the run of the house; "
            "listen on 127.0.0.1, or use TUWEN_AUTH=keys"
        )


class LocalOnly:
    """ASGI middleware of an open installation: no strangers, not even through the user's own browser.

    A page from elsewhere can make a browser send requests here. One that rebinds its own name to 127.0.0.1 would
    even read the answers, but it cannot change the Host header; one that does not rebind is told by the headers that
    browsers add, and is refused whatever changes anything.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app = app
        public = urlsplit(settings.public_url).hostname if settings.public_url else None
        self._names = _LOOPBACK_NAMES | ({public} if public else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            error = self._objection(scope)
            if error is not None:
                await respond_to(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _objection(self, scope: Scope) -> Forbidden | None:
        headers = Headers(scope=scope)
        server = scope.get("server")
        if server and _is_address(server[0]) and not is_loopback(server[0]):
            return Forbidden("Without API keys only this machine is served.")
        host = headers.get("host", "")
        if _host_name(host) not in self._names:
            return Forbidden("Without API keys only localhost is served; this request names another host.")
        if scope["method"] not in _SAFE_METHODS and _is_cross_site(headers, host):
            return Forbidden("This request was made by a page of another site.")
        return None


def _is_cross_site(headers: Headers, host: str) -> bool:
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc != host
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
