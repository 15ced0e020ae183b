"""Who is calling: the owner of an API key, or anybody on this machine when the installation is open.

A key is `tw_` and 256 random bits. Only its SHA-256 is stored: for a secret that nobody can guess, a slow hash or a
salt would add nothing. Because a key is found by its hash, no code compares keys letter by letter.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import time
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.problems import respond_to
from api.http.revocation import Holds, hold_of
from shared.database import Database
from shared.database.keys import ApiKey
from shared.database.usage import UNBOUNDED, Bounds
from shared.local_hosts import host_name, local_names
from shared.settings import Settings, is_loopback
from tuwen.errors import ConfigurationError, Forbidden, Unauthorized
from tuwen.jobs import Tenant

OPEN_TENANT = "local"
_KEY = re.compile(r"tw_[A-Za-z0-9_-]{43}", re.ASCII)
_CACHED = 1.0
"""Seconds for which a key that was found is cached; a revoked key may still begin requests for that long."""
_MOST_CACHED = 10_000
_SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant for whom a request acts; `quota` limits its unfinished jobs, None means no limit."""

    tenant: Tenant
    quota: int | None = None
    name: str | None = None
    """Name of the key; None in an open installation, which serves everybody on this machine."""
    bounds: Bounds = UNBOUNDED
    key_id: UUID | None = None
    signs_webhooks: bool = False
    """Whether the key has a webhook secret of its own."""
    dataset_roots: tuple[str, ...] | None = None
    """Places that the key's data sets may lie in; None in an open installation."""


def new_key() -> tuple[str, str]:
    """Make a new key: the key, which is shown once, and its hash, which is stored."""
    key = f"tw_{secrets.token_urlsafe(32)}"
    return key, key_hash(key)


def new_webhook_secret() -> SecretStr:
    """Make a new webhook secret, as Standard Webhooks writes them: 32 random bytes."""
    return SecretStr(f"whsec_{b64encode(secrets.token_bytes(32)).decode()}")


def key_hash(key: str) -> str:
    """SHA-256 of an API key, in hexadecimal digits."""
    return sha256(key.encode()).hexdigest()


class Keyring:
    """Finds the caller of a key. Thread-safe."""

    def __init__(self, database: Database, settings: Settings):
        self._database = database
        self._settings = settings
        self._known: dict[str, tuple[float, Caller]] = {}
        self.holds = Holds(database, lambda digest: self._known.pop(digest, None))

    def cached_caller(self, key: str) -> Caller | None:
        """The caller of a key that was looked up a moment ago; None when the key is not in the cache."""
        entry = self._known.get(key_hash(key))
        return entry[1] if entry and entry[0] > time.monotonic() else None

    def find_caller(self, key: str) -> Caller:
        """Look the key up in the database.

        Raises:
            Unauthorized: the key is malformed, unknown or revoked; the message does not say which.
        """
        digest = key_hash(key)
        row = self._database.keys.find(digest) if _KEY.fullmatch(key) else None
        if row is None or not hmac.compare_digest(row.sha256, digest):
            raise Unauthorized("This API key is not valid; check it, or make another with `tuwen keys create`.")
        caller = Caller(
            row.tenant,
            row.quota,
            row.name[:200] or row.tenant,
            bounds=self._bounds(row),
            key_id=row.id,
            signs_webhooks=row.signs_webhooks,
            dataset_roots=row.dataset_roots,
        )
        if len(self._known) >= _MOST_CACHED:
            self._known.clear()
        self._known[digest] = (time.monotonic() + _CACHED, caller)
        return caller

    def _bounds(self, key: ApiKey) -> Bounds:
        """The bounds of a key, which are the installation's where it has none of its own."""
        return Bounds(
            stored_bytes=key.max_stored_bytes or self._settings.default_stored_bytes,
            datasets=key.max_datasets or self._settings.default_datasets,
            batches=key.max_batches or self._settings.default_batches,
        )


bearer = HTTPBearer(auto_error=False, description="API key, `tw_…`; made with `tuwen keys create`")


async def find_caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
) -> Caller:
    """Who calls. Raises Unauthorized, DatabaseUnavailable."""
    keyring: Keyring | None = request.app.state.resources.keyring
    if keyring is None:
        return Caller(OPEN_TENANT)
    if credentials is None:
        raise Unauthorized("This request needs an API key: send it as Authorization: Bearer tw_…")
    key = credentials.credentials
    caller = keyring.cached_caller(key)
    if caller is None:
        caller = await run_sync(keyring.find_caller, key)
    keyring.holds.add(hold_of(request), key_hash(key))
    return caller


CallerDep = Annotated[Caller, Depends(find_caller)]


def require_loopback(settings: Settings) -> None:
    """Refuse to run an open installation that other machines could reach.

    Raises:
        ConfigurationError: the installation is open, and does not listen on loopback or lets every site's pages in.
    """
    if settings.auth == "open" and not is_loopback(settings.host):
        raise ConfigurationError(
            f"TUWEN_AUTH=open gives everybody who reaches {settings.host} full access; "
            "listen on 127.0.0.1, or use TUWEN_AUTH=keys"
        )
    if settings.auth == "open" and "*" in settings.cors_origins:
        raise ConfigurationError(
            "TUWEN_CORS_ORIGINS=* lets the pages of every site use an installation that asks for no key; "
            "list the origins, or use TUWEN_AUTH=keys"
        )


class LocalOnly:
    """ASGI middleware of an open installation: serves this machine only, and refuses requests of other sites' pages.

    A page of another site can make a browser send requests here. If it rebinds its own name to 127.0.0.1, it could even
    read the answers, but it cannot change the Host header. If it does not, the headers that browsers add reveal it, and
    every request that changes something is refused.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app = app
        self._names = local_names(settings)
        self._origins = frozenset(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            error = self._objection(scope)
            if error is not None:
                await respond_to(error, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _objection(self, scope: Scope) -> Forbidden | None:
        headers = Headers(scope=scope)
        server = scope.get("server")
        if server and _is_address(server[0]) and not is_loopback(server[0]):
            return Forbidden("Without API keys only this machine is served.")
        host = headers.get("host", "")
        if host_name(host) not in self._names:
            return Forbidden("Without API keys only localhost is served; this request names another host.")
        if scope["method"] not in _SAFE_METHODS and self._is_cross_site(headers, host):
            return Forbidden("This request was made by a page of another site.")
        return None

    def _is_cross_site(self, headers: Headers, host: str) -> bool:
        origin = headers.get("origin")
        if origin is not None:
            return origin not in self._origins and urlsplit(origin).netloc != host
        return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
