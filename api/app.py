"""The application, which puts the routes together. `python -m api` serves it, with bounds for connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http import problems, reference
from api.http.auth import LocalOnly, require_loopback
from api.http.bodies import BodyLimit
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
        ConfigurationError: the installation is open and other machines could reach it.
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
    app = FastAPIOffline(title="Tuwen 图文", version=__version__, lifespan=lifespan)
    app.state.http_metrics = CollectorRegistry()
    app.include_router(jobs.router)
    app.include_router(files.router)
    app.include_router(datasets.router)
    app.include_router(monitoring.router)
    app.include_router(pages.router)
    for part in (images, chat, models, batches):
        app.include_router(part.router)
    problems.install(app)
    reference.install(app)
    # The middleware added last is the outermost.
    if settings.auth == "keys":
        app.add_middleware(EndWhenRevoked)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    app.add_middleware(problems.LastResort)
    if settings.auth == "open":
        app.add_middleware(LocalOnly, settings=settings)
    app.add_middleware(Hardening)
    app.add_middleware(RequestMetrics, registry=app.state.http_metrics)
    if tracing.wanted():
        tracing.start("tuwen-api")
        app.add_middleware(Traced)
    return app


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
