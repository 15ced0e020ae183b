"""Data sets over HTTP: have one annotated, watch it, pause and steer it, look through its images, review them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Annotated
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from api.http.auth import CallerDep
from api.http.bodies import parse
from api.http.reference import json_body, problems
from api.producer.resources import Resources, ResourcesDep
from api.routes import dataset_items
from api.routes.dataset_items import Only, Order
from shared.intake.dataset_places import require_allowed
from shared.objects import datasets as dataset_objects
from shared.objects.storage import ObjectStore
from shared.settings import Settings
from tuwen.datasets import (
    Dataset,
    DatasetPage,
    DatasetRequest,
    DatasetStatus,
    ExportRequest,
    Item,
    ItemPage,
    PriorityRequest,
    ReviewRequest,
)
from tuwen.errors import DatabaseUnavailable, InvalidRequest, NotFound, StorageUnavailable, Unavailable
from tuwen.jobs import Tenant

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

LOOK = 1.0
"""Seconds between two looks at a data set that somebody watches."""
QUIET = 15.0
"""Seconds after which a stream says that it is still there."""
PREVIEW_PATIENCE = 15.0
"""Seconds in which a housekeeper should have made a preview."""
_LARGEST_PAGE = 200


async def _dataset_id(dataset_id: Annotated[str, Path(json_schema_extra={"format": "uuid"})]) -> UUID:
    try:
        return UUID(dataset_id)
    except ValueError:
        # What cannot be an id is answered like an id that is not there.
        raise NotFound("There is no such data set.") from None


DatasetId = Annotated[UUID, Depends(_dataset_id)]
Image = Annotated[int, Path(ge=0, lt=2**62, description="its number in the data set")]

_EXAMPLES = {
    "captions in two languages": {
        "value": {
            "source": "/data/photos",
            "destination": "/data/captions",
            "destination_format": "parquet",
            "tasks": ["describe", "match"],
            "languages": ["zh", "en"],
            "filters": {"min_score": 0.5},
        }
    },
    "dry run": {"value": {"source": "s3://bucket/photos", "dry_run": True}},
}


@router.post(
    "",
    status_code=202,
    response_model=Dataset,
    summary="Annotate a data set",
    openapi_extra=json_body(DatasetRequest, _EXAMPLES),
    responses=problems(401, 403, 409, 413, 422, 503),
)
async def submit(request: Request, caller: CallerDep, resources: ResourcesDep) -> Response:
    """The run is kept once this is answered. Of two runs into one destination the second is refused."""
    body = await request.body()

    def accept() -> Dataset:
        wanted = admitted(parse(DatasetRequest, body), resources.settings)
        id = resources.database.datasets.submit(wanted, caller.tenant)
        resources.outbox.dataset(id)
        return resources.database.datasets.get(id, caller.tenant)

    dataset = await run_sync(accept)
    return _answer(dataset, 202, {"Location": f"/v1/datasets/{dataset.id}"})


@router.get("", response_model=DatasetPage, summary="List data sets", responses=problems(401, 422))
async def list_datasets(
    caller: CallerDep,
    resources: ResourcesDep,
    cursor: Annotated[UUID | None, Query(description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=_LARGEST_PAGE)] = 20,
) -> Response:
    """Newest first."""

    def look() -> list[Dataset]:
        return resources.database.datasets.page(caller.tenant, before=cursor, limit=limit + 1)

    found = await run_sync(look)
    following = str(found[limit - 1].id) if len(found) > limit else None
    return _answer(DatasetPage(datasets=tuple(found[:limit]), next=following))


@router.get("/{dataset_id}", response_model=Dataset, summary="Show a data set", responses=problems(401, 404))
async def show(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    return _answer(await run_sync(resources.database.datasets.get, dataset_id, caller.tenant))


@router.get(
    "/{dataset_id}/events",
    response_class=StreamingResponse,
    summary="Watch a data set",
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **problems(401, 404)},
)
async def watch(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """Server-sent events: `state` with the whole data set and its progress, first as it is and then about every second
    while it changes. The stream ends after the state in which it is over."""
    await run_sync(resources.database.datasets.get, dataset_id, caller.tenant)  # a 404 is only possible before
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    stream = _stream(resources, dataset_id, caller.tenant)
    return StreamingResponse(stream, headers=headers, media_type="text/event-stream")


@router.delete(
    "/{dataset_id}",
    status_code=204,
    response_class=Response,
    summary="Delete a data set",
    responses=problems(401, 404, 409),
)
async def delete(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """Forget a data set that is over: what was found out, what people said of it, and its previews. Source and exported
    files stay as they are. A later run over the same source annotates all of it anew."""
    await run_sync(resources.database.datasets.delete, dataset_id, caller.tenant)
    return Response(status_code=204, background=BackgroundTask(_clear, resources.store, dataset_id))


# ── steering ──────────────────────────────────────────────────────────────────────────────────────────

_STEERING = problems(401, 404, 409)


@router.post("/{dataset_id}/pause", response_model=Dataset, summary="Pause a data set", responses=_STEERING)
async def pause(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """What runs is given back within seconds, and what it has done is kept."""
    return await _steered(resources, dataset_id, caller.tenant, resources.database.datasets.pause)


@router.post("/{dataset_id}/resume", response_model=Dataset, summary="Resume a data set", responses=_STEERING)
async def resume(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    return await _steered(resources, dataset_id, caller.tenant, resources.database.datasets.resume)


@router.post("/{dataset_id}/cancel", response_model=Dataset, summary="Cancel a data set", responses=_STEERING)
async def cancel(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """What is known by then is kept: it can be exported, and a retry goes on from there."""
    return await _steered(resources, dataset_id, caller.tenant, resources.database.datasets.cancel)


@router.post(
    "/{dataset_id}/priority",
    response_model=Dataset,
    summary="Change the priority of a data set",
    openapi_extra=json_body(PriorityRequest, {"first": {"value": {"priority": 9}}}),
    responses=problems(401, 404, 409, 422),
)
async def prioritize(request: Request, caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """From the next shard on; any single job still goes before all data sets."""
    priority = parse(PriorityRequest, await request.body()).priority

    def change(id: UUID, tenant: Tenant) -> None:
        resources.database.datasets.prioritize(id, tenant, priority)

    return await _steered(resources, dataset_id, caller.tenant, change)


@router.post(
    "/{dataset_id}/retry", status_code=202, response_model=Dataset, summary="Retry what failed", responses=_STEERING
)
async def retry(
    caller: CallerDep,
    dataset_id: DatasetId,
    resources: ResourcesDep,
    failed_only: Annotated[bool, Query(description="do not go on with what a cancel left undone")] = False,
) -> Response:
    """Run the images that failed once more, and no others; of a cancelled run also what was left. Then export again."""

    def change(id: UUID, tenant: Tenant) -> None:
        resources.database.datasets.retry(id, tenant, failed_only=failed_only)

    return await _steered(resources, dataset_id, caller.tenant, change, 202)


@router.post(
    "/{dataset_id}/export",
    status_code=202,
    response_model=Dataset,
    summary="Export a data set once more",
    openapi_extra=json_body(
        ExportRequest, {"kohya": {"value": {"destination": "/data/k", "destination_format": "kohya"}}}
    ),
    responses=problems(401, 403, 404, 409, 422),
)
async def export(request: Request, caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """With all reviews so far, to any destination and in any format; no model is asked again."""
    wanted = parse(ExportRequest, await request.body())

    def change(id: UUID, tenant: Tenant) -> None:
        place = require_allowed(wanted.destination, resources.settings, "destination")
        resources.database.datasets.export(id, tenant, place, wanted.destination_format, overwrite=wanted.overwrite)

    return await _steered(resources, dataset_id, caller.tenant, change, 202)


# ── images ────────────────────────────────────────────────────────────────────────────────────────────


@router.get("/{dataset_id}/items", response_model=ItemPage, summary="List images", responses=problems(401, 404, 422))
async def items(
    caller: CallerDep,
    dataset_id: DatasetId,
    resources: ResourcesDep,
    sort: Annotated[Order, Query(description="`-` puts the highest first")] = "number",
    only: Annotated[Only | None, Query(description="images of which this is true")] = None,
    cursor: Annotated[str | None, Query(max_length=100, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=_LARGEST_PAGE)] = 50,
) -> Response:
    """What is known of each image so far, with what people said of it. Go on while there is a `next`: in a data set too
    large to be indexed, a page of a filtered list may have few images or none."""

    def look() -> ItemPage:
        dataset = resources.database.datasets.get(dataset_id, caller.tenant)
        return dataset_items.page(resources, dataset, sort, only, cursor, limit)

    return _answer(await run_sync(look, limiter=resources.heavy))


@router.get("/{dataset_id}/items/{image}", response_model=Item, summary="Show an image", responses=problems(401, 404))
async def item(caller: CallerDep, dataset_id: DatasetId, image: Image, resources: ResourcesDep) -> Response:
    def look() -> Item:
        resources.database.datasets.get(dataset_id, caller.tenant)
        return dataset_items.one(resources, dataset_id, image)

    return _answer(await run_sync(look))


@router.get(
    "/{dataset_id}/items/{image}/preview",
    response_class=Response,
    summary="Fetch a small picture of an image",
    responses={200: {"content": {"image/jpeg": {}}}, **problems(401, 404, 503)},
)
async def preview(caller: CallerDep, dataset_id: DatasetId, image: Image, resources: ResourcesDep) -> Response:
    """A JPEG of at most 512 pixels on a side; 404 where the image cannot be read."""
    await run_sync(resources.database.datasets.get, dataset_id, caller.tenant)
    key = dataset_objects.preview_key(dataset_id, image)

    def look() -> int | None:
        try:
            return resources.store.head(key).size
        except NotFound:
            return None

    size = await run_sync(look)
    if size is None:
        await run_sync(resources.database.shards.locate, dataset_id, image)
        await run_sync(resources.outbox.preview, dataset_id, image)
        async with asyncio.timeout(PREVIEW_PATIENCE) as patience:
            try:
                while (size := await run_sync(look)) is None:
                    await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                if not patience.expired():
                    raise
                raise Unavailable("No housekeeper has made this preview yet; try again.", retry_after=2) from None
    if size == 0:
        raise NotFound(f"Image {image} cannot be read.")
    # Through here also from S3: a page that follows a redirect there with a key in its hand would need rights there.
    kept = {"Cache-Control": "private, max-age=31536000, immutable", "Content-Security-Policy": "default-src 'none'"}
    return Response(await run_sync(resources.store.get, key), 200, kept, "image/jpeg")


@router.post(
    "/{dataset_id}/items/{image}/reviews",
    status_code=201,
    response_model=Item,
    summary="Review an image",
    openapi_extra=json_body(
        ReviewRequest, {"better words": {"value": {"author": "alice", "text": "a black cat", "language": "en"}}}
    ),
    responses=problems(401, 404, 409, 422),
)
async def review(
    request: Request, caller: CallerDep, dataset_id: DatasetId, image: Image, resources: ResourcesDep
) -> Response:
    """Say that an image is accepted or rejected, or put its caption better. The model's words stay beside it, and the
    next export has both, with the author. The newest verdict counts, and the newest words in each language. An image
    that the models failed on can be put into words, and judged once it has some; one that was never read cannot."""
    said = parse(ReviewRequest, await request.body())
    if caller.name is not None:
        said = said.model_copy(update={"author": caller.name})
    elif said.author is None:
        raise InvalidRequest("Without API keys a review says itself who its author is.", field="author")

    def note() -> Item:
        resources.database.datasets.get(dataset_id, caller.tenant)
        dataset_items.require_reviewable(dataset_items.one(resources, dataset_id, image), said)
        resources.database.datasets.review(dataset_id, image, said)
        return dataset_items.one(resources, dataset_id, image)

    return _answer(await run_sync(note), 201)


@router.delete(
    "/{dataset_id}/items/{image}/reviews/{review_id}",
    response_model=Item,
    summary="Take a review back",
    responses=problems(401, 404, 422),
)
async def withdraw(
    caller: CallerDep, dataset_id: DatasetId, image: Image, review_id: UUID, resources: ResourcesDep
) -> Response:
    """What was said before it holds again. With API keys only the key that said it can take it back."""

    def take_back() -> Item:
        resources.database.datasets.get(dataset_id, caller.tenant)
        resources.database.datasets.withdraw(dataset_id, image, review_id, caller.name)
        return dataset_items.one(resources, dataset_id, image)

    return _answer(await run_sync(take_back))


# ── shared by the routes ──────────────────────────────────────────────────────────────────────────────


def admitted(wanted: DatasetRequest, settings: Settings) -> DatasetRequest:
    """The request with its places in their normal form, once it is known that they may be named.

    Raises:
        InvalidRequest, Forbidden: naming the field.
    """
    source = require_allowed(wanted.source, settings, "source")
    places: dict[str, str] = {"source": source}
    if wanted.source_root is not None:
        places["source_root"] = require_allowed(wanted.source_root, settings, "source_root")
    if wanted.destination is not None:
        places["destination"] = require_allowed(wanted.destination, settings, "destination")
    if places.get("destination") == source and wanted.destination_format not in ("kohya", "imagefolder"):
        raise InvalidRequest(
            "The destination is the source; only kohya and imagefolder put captions beside the images.",
            field="destination",
        )
    return wanted.model_copy(update=places)


def _clear(store: ObjectStore, dataset_id: UUID) -> None:
    """Remove the objects of a data set that has no row any more; what is left of them, the housekeeper collects."""
    try:
        store.delete_folder(dataset_objects.folder(dataset_id))
    except StorageUnavailable as error:
        log.warning("objects of data set %s are left to the housekeeper: %s", dataset_id, error)


async def _steered(
    resources: Resources,
    dataset_id: UUID,
    tenant: Tenant,
    change: Callable[[UUID, Tenant], object],
    status: int = 200,
) -> Response:
    def steer() -> Dataset:
        change(dataset_id, tenant)
        dataset = resources.database.datasets.get(dataset_id, tenant)
        if dataset.status in (DatasetStatus.PLANNING, DatasetStatus.EXPORTING):
            resources.outbox.dataset(dataset_id)
        return dataset

    return _answer(await run_sync(steer), status)


def _answer(shown: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        shown.model_dump_json(), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json"
    )


async def _stream(resources: Resources, dataset_id: UUID, tenant: Tenant) -> AsyncIterator[bytes]:
    told = b""
    quiet = 0.0
    while True:
        try:
            dataset = await run_sync(resources.database.datasets.get, dataset_id, tenant)
        except DatabaseUnavailable:
            yield b": PostgreSQL does not answer\n\n"
            await asyncio.sleep(LOOK)
            continue
        news = dataset.model_dump_json().encode()
        if news != told:
            told, quiet = news, 0.0
            yield b"event: state\ndata: " + news + b"\n\n"
        elif quiet >= QUIET:
            quiet = 0.0
            yield b": still here\n\n"
        if dataset.status.terminal:
            return
        await asyncio.sleep(LOOK)
        quiet += LOOK
