"""The application, which puts the routes together. `python -m api` serves it, with bounds for connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http import problems, reference
from api.http.auth import LocalOnly, require_loopback
from api.http.bodies import BodyLimit
from api.http.headers import EXPOSED
from api.http.methods import HeadAsGet, Methods
from api.http.request_ids import RequestIds
from api.http.revocation import EndWhenRevoked
from api.http.tracing import Traced
from api.openai import batches, chat, images, models
from api.producer.resources import open_resources
from api.routes import datasets, files, jobs, monitoring, pages
from api.routes.monitoring import RequestMetrics
from shared.settings import Settings
from shared.settings import settings as process_settings
from shared.telemetry import tracing
from tuwen.version import __version__


def create_app(settings: Settings | None = None) -> FastAPI:
    """Create the ASGI application; `settings` default to those of the process.

    Raises:
        ConfigurationError: the installation is open, and other machines or every site's pages could reach it.
    """
    settings = settings or process_settings()
    require_loopback(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_resources(settings) as resources:
            app.state.resources = resources
            try:
                yield
            finally:
                tracing.stop()

    # The documentation pages load nothing from other hosts: many machines with GPUs reach no CDN.
    # The redirects of Starlette name the Host that a request claims; `Methods` has its own.
    app = FastAPIOffline(title="Tuwen 图文", version=__version__, lifespan=lifespan, redirect_slashes=False)
    app.state.http_metrics = CollectorRegistry()
    routes = [*app.routes]
    for part in (jobs, files, datasets, monitoring, pages, images, chat, models, batches):
        app.include_router(part.router)
        routes += part.router.routes
    problems.install(app)
    reference.install(app)
    # The middleware added last is the outermost.
    if settings.auth == "keys":
        app.add_middleware(EndWhenRevoked)
    app.add_middleware(Methods, routes=routes)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(problems.LastResort)
    if settings.auth == "open":
        app.add_middleware(LocalOnly, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("DELETE", "GET", "HEAD", "POST"),
            allow_headers=_CORS_HEADERS,
            expose_headers=EXPOSED,
        )
    app.add_middleware(HeadAsGet)
    app.add_middleware(Hardening)
    app.add_middleware(RequestMetrics, registry=app.state.http_metrics)
    if tracing.wanted():
        tracing.start("tuwen-api")
        app.add_middleware(Traced)
    app.add_middleware(RequestIds)
    return app


_CORS_HEADERS = (
    "Authorization",
    "Idempotency-Key",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "Traceparent",
    "Tracestate",
    "X-Request-Id",
)
"""Header fields that pages of other origins may send, besides those that every page may."""


class Hardening:
    """ASGI middleware that tells browsers to trust the declared media type and to show no answer in a frame."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Content-Security-Policy", "frame-ancestors 'none'")
                headers.setdefault("Referrer-Policy", "no-referrer")
            await send(message)

        await self._app(scope, receive, send_hardened)
