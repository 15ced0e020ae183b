"""How the installation is doing: for load balancers, for Prometheus, and for people."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Literal
from urllib.parse import urlsplit

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as HttpHistogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.auth import CallerDep
from api.http.reference import problems
from api.openai.errors import openai_problems
from api.openai.models import served_models
from api.producer.links import BaseUrlDep
from api.producer.resources import Resources, ResourcesDep
from shared.database import QueueState
from shared.database.datasets import DatasetFigures
from shared.database.webhooks import LATE, WebhookFigures
from shared.database.workers import WorkerState
from shared.telemetry.metrics import COUNTERS, HISTOGRAMS, distributions, redis_key
from tuwen.errors import DatabaseUnavailable, QueueUnavailable, TuwenError
from tuwen.jobs import Kind, Status
from tuwen.messages import Health, Models, ModelState, ModelWorker, Readiness, State
from tuwen.version import __version__

log = logging.getLogger(__name__)

router = APIRouter(tags=["monitoring"])

_PATIENCE = 2.0
"""Seconds that a part of the system has to answer a readiness check."""
_checkers = CapacityLimiter(8)
"""Separate threads for checks: a check that hangs must not take a thread from the requests."""


@router.get("/healthz", response_model=Health, summary="Is this process alive?")
async def health() -> Health:
    """Nothing outside this process is asked."""
    return Health(version=__version__)


@router.get(
    "/readyz",
    response_model=Readiness,
    summary="Can jobs be submitted?",
    responses={503: {"model": Readiness, "description": "PostgreSQL or object storage fails"}},
)
async def readiness(resources: ResourcesDep) -> Response:
    """Without Redis, jobs are still accepted and stored, so the process stays ready when Redis is down."""
    problems = {
        "postgresql": _problem(_run_check(resources.database.check)),
        "storage": _problem(_run_check(resources.storage_check.require)),
        "redis": _problem(resources.events.ping()),
    }
    found = dict(zip(problems, await asyncio.gather(*problems.values()), strict=True))
    components: dict[str, State] = {part: "failed" if problem else "ok" for part, problem in found.items()}
    failed = "failed" in (components["postgresql"], components["storage"])
    degraded: Literal["ready", "degraded"] = "ready" if components["redis"] == "ok" else "degraded"
    readiness = Readiness(
        status="failed" if failed else degraded,
        components=components,
        problems={part: problem for part, problem in found.items() if problem} if failed else None,
    )
    return Response(
        readiness.model_dump_json(exclude_none=True),
        503 if failed else 200,
        {"Cache-Control": "no-store"},
        "application/json",
    )


async def _run_check(check: Callable[[], None]) -> None:
    async with asyncio.timeout(_PATIENCE):
        await run_sync(check, abandon_on_cancel=True, limiter=_checkers)


async def _problem(check: Awaitable[None]) -> str | None:
    """What is wrong with a part of the system; None when it works."""
    try:
        await check
    except TimeoutError:
        return f"no answer within {_PATIENCE:g} s"
    except TuwenError as error:
        log.debug("not ready: %s", error)
        return str(error)
    return None


@router.get(
    "/v1/models",
    operation_id="list_models",
    response_model=Models,
    summary="List the models",
    responses=openai_problems(),
)
async def models(_: CallerDep, resources: ResourcesDep) -> Models:
    """The models of each kind, the default first, and the workers that have them; under `data` as OpenAI lists them."""
    workers = await run_sync(resources.database.workers.alive)
    named = [(kind, model.name) for kind in Kind for model in resources.settings.models_for(kind)]
    states = [_model_state(kind, name, workers) for kind, name in named]
    return Models(models=states, data=served_models(resources.settings, workers))


def _model_state(kind: Kind, model: str, workers: list[WorkerState]) -> ModelState:
    holding = [
        ModelWorker(worker=row.name, device=row.device, revision=revisions[model], release=row.release)
        for row in workers
        if row.state == "ready" and kind in row.models and model in (revisions := row.models[kind].revisions)
    ]
    return ModelState(kind=kind, model=model, ready=bool(holding), workers=holding)


# ── Prometheus ────────────────────────────────────────────────────────────────────────────────────────


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    summary="Figures for Prometheus",
    responses={200: {"description": "Prometheus's text format"}, **problems()},
)
async def metrics(request: Request, _: CallerDep, resources: ResourcesDep) -> Response:
    """Metrics of the whole installation, for all tenants together; any API key gives access, where keys are needed."""
    figures = CollectorRegistry()
    figures.register(_Gathered(await _gather(resources)))
    own: CollectorRegistry = request.app.state.http_metrics
    return Response(generate_latest(own) + generate_latest(figures), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class _Gathered(Collector):
    """Metrics that were fetched before: prometheus_client asks for them only while it writes."""

    def __init__(self, families: list[Metric]):
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


async def _gather(resources: Resources) -> list[Metric]:
    """Metrics from PostgreSQL and Redis; those that cannot be fetched now are left out, and `tuwen_up` says so."""
    up = GaugeMetricFamily("tuwen_up", "Whether a part of the system answers the API", labels=["component"])
    families: list[Metric] = [up]
    try:
        families += _queue_families(await run_sync(resources.database.jobs.queues))
        workers = GaugeMetricFamily("tuwen_workers", "Workers heard of within a lease", labels=["device"])
        for device, count in _by_device(await run_sync(resources.database.workers.alive)).items():
            workers.add_metric([device], count)
        families.append(workers)
        families += _dataset_families(
            await run_sync(resources.database.datasets.figures), await run_sync(resources.database.datasets.speed)
        )
        families += _webhook_families(await run_sync(resources.database.webhooks.figures))
        up.add_metric(["postgresql"], 1)
    except DatabaseUnavailable:
        up.add_metric(["postgresql"], 0)
    try:
        hashes = await resources.events.hashes([redis_key(metric) for metric in (*HISTOGRAMS, *COUNTERS)])
        families += _worker_families(hashes)
        families.append(
            GaugeMetricFamily(
                "tuwen_housekeepers", "Hosts whose housekeeper works", await resources.events.housekeepers()
            )
        )
        up.add_metric(["redis"], 1)
    except QueueUnavailable:
        up.add_metric(["redis"], 0)
    storage_fails = await _problem(_run_check(resources.storage_check.require))
    up.add_metric(["storage"], 0 if storage_fails else 1)
    return families


def _by_device(workers: Sequence[WorkerState]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for worker in workers:
        counts[worker.device] = counts.get(worker.device, 0) + 1
    return counts


def _queue_families(queues: Mapping[Kind, QueueState]) -> list[Metric]:
    queued = GaugeMetricFamily("tuwen_jobs_queued", "Jobs that wait to run", labels=["kind"])
    running = GaugeMetricFamily("tuwen_jobs_running", "Jobs that a worker runs", labels=["kind"])
    oldest = GaugeMetricFamily(
        "tuwen_oldest_job_age_seconds", "How long the oldest job that may run has waited", labels=["kind"]
    )
    for kind, state in queues.items():
        queued.add_metric([kind], state.queued)
        running.add_metric([kind], state.running)
        oldest.add_metric([kind], state.oldest_age)
    return [queued, running, oldest]


def _webhook_families(figures: WebhookFigures) -> list[Metric]:
    return [
        GaugeMetricFamily("tuwen_webhooks_waiting", "Webhooks that are still to be delivered", figures.waiting),
        GaugeMetricFamily("tuwen_webhooks_late", f"Of those, the ones owed for over {LATE:.0f} s", figures.late),
        GaugeMetricFamily("tuwen_webhooks_given_up", "Webhooks that no receiver took in time", figures.given_up),
        GaugeMetricFamily(
            "tuwen_oldest_webhook_age_seconds",
            "How long the oldest webhook that is still to be delivered has waited",
            figures.oldest_age,
        ),
    ]


def _dataset_families(rows: Sequence[DatasetFigures], speed: tuple[float, float]) -> list[Metric]:
    """Metrics of the data sets that are not over."""
    shards = GaugeMetricFamily("tuwen_dataset_shards", "Shards by their state", labels=["status"])
    images = GaugeMetricFamily("tuwen_dataset_images", "Images by what has become of them", labels=["state"])
    for status in sorted({row.shard_status for row in rows}):
        shards.add_metric([status], sum(row.shards for row in rows if row.shard_status == status))
    for state, column in (("done", "done"), ("failed", "failed"), ("left", "images_left"), ("paused", "images_paused")):
        images.add_metric([state], sum(getattr(row, column) for row in rows))
    rate = GaugeMetricFamily("tuwen_dataset_images_per_second", "Images annotated, over the last minute")
    rate.add_metric([], speed[0])
    tokens = GaugeMetricFamily("tuwen_dataset_tokens_per_second", "Tokens written, over the last minute")
    tokens.add_metric([], speed[1])
    return [shards, images, rate, tokens]


def _worker_families(hashes: list[dict[str, str]]) -> Iterator[Metric]:
    for histogram, fields in zip(HISTOGRAMS, hashes, strict=False):
        family = HistogramMetricFamily(histogram.name, histogram.help, labels=["kind"])
        for kind, found in distributions(histogram, fields).items():
            buckets = [("+Inf" if bound == float("inf") else str(bound), count) for bound, count in found.buckets]
            family.add_metric([kind], buckets, found.total)
        yield family
    for counter, fields in zip(COUNTERS, hashes[len(HISTOGRAMS) :], strict=True):
        counts = CounterMetricFamily(counter.name, counter.help, labels=["kind", "status"])
        # Prometheus sees no growth in a series that begins with one, so each begins with nothing.
        nothing = {f"{kind}/{status}": "0" for kind in Kind for status in Status if status.terminal}
        for field, value in (nothing | fields).items():
            counts.add_metric(field.split("/"), float(value))
        yield counts


class RequestMetrics:
    """ASGI middleware that times requests by route, not by path: ids would make the number of time series unbounded."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry):
        self._app = app
        self._seconds = HttpHistogram(
            "tuwen_http_request_seconds",
            "Time from a request to the start of its answer",
            ["method", "route", "status"],
            registry=registry,
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()

        async def send_timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._observe(scope, message["status"], time.perf_counter() - started)
            await send(message)

        await self._app(scope, receive, send_timed)

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        if isinstance(route, APIRoute):
            method, path = scope["method"], route.path
        else:
            method, path = "any", "none"
        self._seconds.labels(method, path, status).observe(seconds)


# ── for people ────────────────────────────────────────────────────────────────────────────────────────


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def front_page(request: Request, resources: ResourcesDep, base_url: BaseUrlDep) -> HTMLResponse:
    """A page that links to what the API offers; it loads no asset from any host."""
    rows = "".join(
        f"<tr><td>{escape(method)}<td><code>{escape(path)}</code><td>{escape(operation.get('summary', ''))}"
        for path, operations in request.app.openapi()["paths"].items()
        for method, operation in ((method.upper(), operation) for method, operation in operations.items())
    )
    host = urlsplit(base_url).hostname or "127.0.0.1"
    flower = f"http://{f'[{host}]' if ':' in host else host}:{resources.settings.flower_port}/"
    return HTMLResponse(_FRONT_PAGE.format(version=escape(__version__), flower=escape(flower), rows=rows))


_FRONT_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Tuwen 图文</title>
<style>
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 52rem; margin: 3rem auto; padding: 0 1rem }}
td {{ padding: .1rem 1.2rem .1rem 0; vertical-align: top }} nav a {{ margin-right: 1.2rem }}
</style>
<h1>Tuwen 图文</h1>
<p>Text into images, images into text: an asynchronous job queue. Version {version}.</p>
<nav><a href="docs">API documentation</a><a href="openapi.json">OpenAPI</a><a href="readyz">Readiness</a>
<a href="metrics">Metrics</a><a href="{flower}">Flower</a></nav>
<h2>The API</h2>
<table>{rows}</table>
"""
