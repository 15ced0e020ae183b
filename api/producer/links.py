"""Links: under which address this API is reached, and signed URLs of results, for readers without a header."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials
from starlette.datastructures import Headers
from starlette.types import Scope

from api.http.auth import Caller, CallerDep, bearer, find_caller
from api.producer.resources import Resources, ResourcesDep
from shared.local_hosts import host_name, local_names
from shared.objects.signed_urls import ResultUrls
from shared.settings import Settings
from tuwen.jobs import Tenant

log = logging.getLogger(__name__)


def base_url(scope: Scope, settings: Settings) -> str:
    """URL at which clients reach this API, without a trailing slash.

    That is `public_url` if it is set. Otherwise a request's Host counts if it is a name of this machine, the address at
    which the request arrived, or one of `public_hosts`; where it is anything else, the address stands in its place: a
    stranger must not decide where our links lead. `X-Forwarded-Host` never counts.
    """
    if settings.public_url:
        return settings.public_url.rstrip("/")
    arrived = _arrival(scope)
    said = Headers(scope=scope).get("host", "")
    names = local_names(settings) | set(settings.public_hosts) | {host_name(arrived)}
    trusted = host_name(said) in names
    if not trusted:
        _report_foreign_host(arrived)
    return f"{scope['scheme']}://{_plain(said) if trusted else arrived}{scope.get('root_path', '')}"


@cache
def _report_foreign_host(arrived: str) -> None:
    """Say once for each of our addresses that links may not be those that clients expect."""
    log.warning(
        "a request for another host arrived at %s, so links in its answer begin with that address; "
        "if clients reach the API by another name, set TUWEN_PUBLIC_URL, or add the name to TUWEN_PUBLIC_HOSTS",
        arrived,
    )


def _arrival(scope: Scope) -> str:
    """The address at which a request arrived, as a Host field would have it; behind a Unix socket, localhost."""
    host, port = scope.get("server") or ("localhost", None)
    return "localhost" if port is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _plain(host: str) -> str:
    """Name and port of a Host field, without whatever else a URL could hold."""
    parts = urlsplit(f"//{host}")
    name = parts.hostname or ""
    try:
        port = parts.port
    except ValueError:
        port = None
    name = f"[{name}]" if ":" in name else name
    return name if port is None else f"{name}:{port}"


async def _base_url(request: Request, resources: ResourcesDep) -> str:
    return base_url(request.scope, resources.settings)


BaseUrlDep = Annotated[str, Depends(_base_url)]
"""URL at which clients reach this API, without a trailing slash."""


async def _result_urls(caller: CallerDep, base: BaseUrlDep, resources: ResourcesDep) -> ResultUrls:
    if not resources.signer.ready:
        await run_sync(resources.signer.load)
    return ResultUrls(resources.signer, base, caller.key_id)


ResultUrlsDep = Annotated[ResultUrls, Depends(_result_urls)]
"""Makes signed URLs for the caller."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Who fetches a result: a caller with a key, or whoever has a signed URL of it."""

    caller: Caller | None
    key_id: UUID | None = None
    """The key for which the URL was signed; None: for the tenant."""

    def tenant(self, resources: Resources, find_owner: Callable[[], Tenant]) -> Tenant:
        """The tenant whose results he may see.

        Raises:
            NotFound: there is nothing that a signed URL leads to.
            Forbidden: the key for which the URL was signed has been revoked.
        """
        if self.caller is not None:
            return self.caller.tenant
        owner = find_owner()
        if resources.keyring is not None:
            resources.database.keys.require_active(owner, self.key_id)
        return owner


async def _reader(
    request: Request,
    resources: ResourcesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
    signature: Annotated[
        str | None, Query(description="of a URL that the API has signed, as it comes; no key is needed then")
    ] = None,
    expires: Annotated[str | None, Query(description="part of a signed URL: Unix time until which it holds")] = None,  # noqa: ARG001
    key: Annotated[str | None, Query(description="part of a signed URL: id of the key that it was made for")] = None,  # noqa: ARG001
) -> Reader:
    if signature is None:
        return Reader(await find_caller(request, credentials))
    given = request.query_params.multi_items()
    return Reader(None, await run_sync(resources.signer.verify, request.scope["path"], given))


ReaderDep = Annotated[Reader, Depends(_reader)]
"""Comes first in every signature, as the caller does elsewhere."""
