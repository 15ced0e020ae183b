"""Data sets over HTTP: annotate one, watch it, pause and steer it, list its images, review them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.responses import Response

from api.http.auth import Caller, CallerDep
from api.http.headers import documented
from api.http.pagination import link_header
from api.http.reference import json_body, problems
from api.http.streams import EVENTS, StreamingRoute
from api.producer.contents import contents, serve
from api.producer.links import BaseUrlDep, ReaderDep, ResultUrlsDep
from api.producer.once import IdempotencyKey, once
from api.producer.resources import Resources, ResourcesDep
from api.routes import dataset_items
from api.routes.dataset_items import Only, Order
from shared.intake.dataset_places import Permission
from shared.intake.validation import parse
from shared.objects import datasets as dataset_objects
from shared.objects.signed_urls import ResultUrls
from shared.objects.storage import ObjectStore
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

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=StreamingRoute)

LOOK = 1.0
"""Seconds between two reads of a data set that a client watches."""
PREVIEW_PATIENCE = 15.0
"""Seconds within which a housekeeper should make a preview."""
_LARGEST_PAGE = 200


async def _dataset_id(dataset_id: Annotated[str, Path(json_schema_extra={"format": "uuid"})]) -> UUID:
    try:
        return UUID(dataset_id)
    except ValueError:
        # Text that cannot be an id is answered like an unknown id.
        raise NotFound("There is no data set with this id.") from None


DatasetId = Annotated[UUID, Depends(_dataset_id)]


async def _watched_dataset_id(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> UUID:
    await run_sync(resources.database.datasets.get, dataset_id, caller.tenant)
    return dataset_id


WatchedDatasetId = Annotated[UUID, Depends(_watched_dataset_id)]
"""The id of a data set that exists: once a stream has begun, 404 can no longer be answered."""
Image = Annotated[int, Path(ge=0, lt=2**62, description="number of the image in the data set")]

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
    responses={202: {"headers": documented("Location")}, **problems(401, 403, 409, 413, 422, 429, 503)},
)
async def submit(
    request: Request, caller: CallerDep, resources: ResourcesDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """The run is stored when this request is answered. A second run into the same destination is refused, as is a
    destination that belongs to another tenant. With API keys, all places must lie below the roots of the key."""
    body = await request.body()

    def accept() -> Dataset:
        wanted = admit(parse(DatasetRequest, body), _permission(caller, resources))
        asked = once(idempotency_key, "dataset", wanted.model_dump_json())
        id = resources.database.datasets.submit(
            wanted, caller.tenant, most=caller.bounds.datasets, key=caller.key_id, once=asked
        )
        resources.outbox.publish_dataset(id)
        return resources.database.datasets.get(id, caller.tenant)

    dataset = await run_sync(accept)
    return _answer(dataset, 202, {"Location": f"/v1/datasets/{dataset.id}"})


@router.get(
    "",
    response_model=DatasetPage,
    summary="List data sets",
    responses={200: {"headers": documented("Link")}, **problems(401, 422)},
)
async def list_datasets(
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    base_url: BaseUrlDep,
    cursor: Annotated[UUID | None, Query(description="`next` of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=_LARGEST_PAGE)] = 20,
) -> Response:
    """Newest first."""

    def look() -> list[Dataset]:
        return resources.database.datasets.page(caller.tenant, before=cursor, limit=limit + 1)

    found = await run_sync(look)
    following = str(found[limit - 1].id) if len(found) > limit else None
    links = link_header(request, base_url, next={"cursor": following} if following else None)
    return _answer(DatasetPage(datasets=tuple(found[:limit]), next=following), headers=links)


@router.get("/{dataset_id}", response_model=Dataset, summary="Show a data set", responses=problems(401, 404))
async def show(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """The answer has the progress, the speed, and the workers that run its shards."""
    return _answer(await run_sync(resources.database.datasets.get, dataset_id, caller.tenant))


@router.get(
    "/{dataset_id}/events",
    response_class=EventSourceResponse,
    summary="Watch a data set",
    responses=EVENTS | problems(401, 404),
)
async def watch(
    caller: CallerDep, dataset_id: WatchedDatasetId, resources: ResourcesDep
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `state` with the whole data set and its progress, at first and then about every second while
    it changes. The stream ends after the state in which the data set is over."""
    shown: Dataset | None = None
    while True:
        try:
            dataset = await run_sync(resources.database.datasets.get, dataset_id, caller.tenant)
        except DatabaseUnavailable:
            yield ServerSentEvent(comment="PostgreSQL does not answer")
            await asyncio.sleep(LOOK)
            continue
        if dataset != shown:
            shown = dataset
            yield ServerSentEvent(event="state", data=dataset)
        if dataset.status.terminal:
            return
        await asyncio.sleep(LOOK)


@router.delete(
    "/{dataset_id}",
    status_code=204,
    response_class=Response,
    summary="Delete a data set",
    responses=problems(401, 404, 409),
)
async def delete(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """Delete a data set that is over, with its annotations, reviews and previews. The source and exported files stay. A
    later run over the same source annotates all of it again."""
    await run_sync(resources.database.datasets.delete, dataset_id, caller.tenant)
    return Response(status_code=204, background=BackgroundTask(_clear, resources.store, dataset_id))


# ── steering ──────────────────────────────────────────────────────────────────────────────────────────

_STEERING = problems(401, 404, 409)


@router.post("/{dataset_id}/pause", response_model=Dataset, summary="Pause a data set", responses=_STEERING)
async def pause(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """Running shards stop within seconds, and their finished annotations are kept."""
    return await _steer(resources, dataset_id, caller.tenant, resources.database.datasets.pause)


@router.post("/{dataset_id}/resume", response_model=Dataset, summary="Resume a data set", responses=_STEERING)
async def resume(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """A data set that was paused goes on where it stopped."""
    return await _steer(resources, dataset_id, caller.tenant, resources.database.datasets.resume)


@router.post("/{dataset_id}/cancel", response_model=Dataset, summary="Cancel a data set", responses=_STEERING)
async def cancel(caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """Annotations that are finished by then are kept: they can be exported, and a retry continues from there."""
    return await _steer(resources, dataset_id, caller.tenant, resources.database.datasets.cancel)


@router.post(
    "/{dataset_id}/priority",
    response_model=Dataset,
    summary="Change the priority of a data set",
    openapi_extra=json_body(PriorityRequest, {"first": {"value": {"priority": 9}}}),
    responses=problems(401, 404, 409, 422),
)
async def prioritize(request: Request, caller: CallerDep, dataset_id: DatasetId, resources: ResourcesDep) -> Response:
    """The priority holds from the next shard on; any single job still goes before all data sets."""
    priority = parse(PriorityRequest, await request.body()).priority

    def change(id: UUID, tenant: Tenant) -> None:
        resources.database.datasets.prioritize(id, tenant, priority)

    return await _steer(resources, dataset_id, caller.tenant, change)


@router.post(
    "/{dataset_id}/retry",
    status_code=202,
    response_model=Dataset,
    summary="Retry failed images",
    responses=problems(401, 403, 404, 409, 422, 429),
)
async def retry(
    caller: CallerDep,
    dataset_id: DatasetId,
    resources: ResourcesDep,
    failed_only: Annotated[bool, Query(description="do not run the images that a cancel left undone")] = False,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Run only the images that failed again, and those that a cancel left undone. Then export again."""

    asked = once(idempotency_key, "retry of a data set", str(dataset_id), str(failed_only))

    def change(id: UUID, tenant: Tenant) -> None:
        admit(resources.database.datasets.get(id, tenant).request, _permission(caller, resources))
        resources.database.datasets.retry(
            id, tenant, failed_only=failed_only, most=caller.bounds.datasets, key=caller.key_id, once=asked
        )

    return await _steer(resources, dataset_id, caller.tenant, change, 202)


@router.post(
    "/{dataset_id}/export",
    status_code=202,
    response_model=Dataset,
    summary="Export a data set again",
    openapi_extra=json_body(
        ExportRequest, {"kohya": {"value": {"destination": "/data/k", "destination_format": "kohya"}}}
    ),
    responses=problems(401, 403, 404, 409, 422, 429),
)
async def export(
    request: Request,
    caller: CallerDep,
    dataset_id: DatasetId,
    resources: ResourcesDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Export the data set with all reviews so far, to any destination and in any format; no model runs again."""
    wanted = parse(ExportRequest, await request.body())
    asked = once(idempotency_key, "export", str(dataset_id), wanted.model_dump_json())

    def change(id: UUID, tenant: Tenant) -> None:
        before = resources.database.datasets.get(id, tenant).request
        changed = before.model_copy(update=wanted.model_dump())
        place = admit(changed, _permission(caller, resources)).destination or ""
        resources.database.datasets.export(
            id,
            tenant,
            place,
            wanted.destination_format,
            overwrite=wanted.overwrite,
            most=caller.bounds.datasets,
            key=caller.key_id,
            once=asked,
        )

    return await _steer(resources, dataset_id, caller.tenant, change, 202)


# ── images ────────────────────────────────────────────────────────────────────────────────────────────


@router.get(
    "/{dataset_id}/items",
    response_model=ItemPage,
    summary="List images",
    responses={200: {"headers": documented("Link")}, **problems(401, 404, 422)},
)
async def items(
    request: Request,
    caller: CallerDep,
    dataset_id: DatasetId,
    resources: ResourcesDep,
    urls: ResultUrlsDep,
    sort: Annotated[Order, Query(description="`-` puts the highest first")] = "number",
    only: Annotated[Only | None, Query(description="images of which this is true")] = None,
    cursor: Annotated[str | None, Query(max_length=100, description="`next` of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=_LARGEST_PAGE)] = 50,
) -> Response:
    """The annotations of each image so far, with its reviews. Continue while there is a `next`: in a data set too large
    to be indexed, a page of a filtered list may have few images or none."""

    def look() -> ItemPage:
        dataset = resources.database.datasets.get(dataset_id, caller.tenant)
        return dataset_items.page(resources, dataset, sort, only, cursor, limit)

    page = await run_sync(look, limiter=resources.heavy)
    links = link_header(
        request,
        urls.base_url,
        prev=dataset_items.previous(page, limit) if sort == "number" and only is None else None,
        next={"cursor": page.next} if page.next else None,
    )
    shown = tuple(_with_preview(each, dataset_id, urls) for each in page.items)
    return _answer(page.model_copy(update={"items": shown}), headers=links)


@router.get("/{dataset_id}/items/{image}", response_model=Item, summary="Show an image", responses=problems(401, 404))
async def item(
    caller: CallerDep, dataset_id: DatasetId, image: Image, resources: ResourcesDep, urls: ResultUrlsDep
) -> Response:
    """The answer has the captions, or the reason or error in their place, and all reviews."""

    def look() -> Item:
        resources.database.datasets.get(dataset_id, caller.tenant)
        return dataset_items.one(resources, dataset_id, image)

    return _answer(_with_preview(await run_sync(look), dataset_id, urls))


@router.get(
    "/{dataset_id}/items/{image}/preview",
    response_class=Response,
    summary="Fetch a preview of an image",
    responses={**contents("image/jpeg", redirects=False), **problems(401, 403, 404, 410, 416, 503)},
)
async def preview(
    request: Request, reader: ReaderDep, dataset_id: DatasetId, image: Image, resources: ResourcesDep
) -> Response:
    """The preview is a JPEG of at most 512 pixels on a side; 404 when the image cannot be read, 403 when the data set
    may not read its source any more. The URL that an image's `preview_url` is needs no API key; it holds for a limited
    time."""

    def admit_reader() -> Dataset:
        tenant = reader.tenant(resources, lambda: resources.database.datasets.owner(dataset_id))
        return resources.database.datasets.get(dataset_id, tenant)

    dataset = await run_sync(admit_reader)
    key = dataset_objects.preview_key(dataset_id, image)

    def look() -> int | None:
        try:
            return resources.store.head(key).size
        except NotFound:
            return None

    size = await run_sync(look)
    if size is None:
        key_roots = await run_sync(resources.database.dataset_places.key_roots, dataset_id)
        Permission.of(resources.settings, key_roots).require(dataset.request.source, "source")
        await run_sync(resources.database.shards.locate, dataset_id, image)
        await run_sync(resources.outbox.ask_for_preview, dataset_id, image)
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
    # Previews in S3 are served through the API too: a page that follows a redirect with its API key would need CORS
    # there.
    tag = f"{dataset_id.hex}-{image}"
    return await run_sync(partial(serve, resources, key, "image/jpeg", tag, request.headers, redirects=False))


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
    request: Request,
    caller: CallerDep,
    dataset_id: DatasetId,
    image: Image,
    resources: ResourcesDep,
    urls: ResultUrlsDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept or reject an image, or improve its caption. The model's caption stays beside the review, and the next
    export has both, with the author. The newest verdict counts, and the newest caption in each language. An image that
    the models failed on can be given a caption, and judged afterwards; an image that was never read cannot."""
    said = parse(ReviewRequest, await request.body())
    if caller.name is not None:
        said = said.model_copy(update={"author": caller.name})
    elif said.author is None:
        raise InvalidRequest(
            "Name the author of the review: without API keys, the review has to say who wrote it.", field="author"
        )

    key = once(idempotency_key, "review", str(dataset_id), str(image), said.model_dump_json())

    def note() -> Item:
        resources.database.datasets.get(dataset_id, caller.tenant)
        dataset_items.require_reviewable(dataset_items.one(resources, dataset_id, image), said)
        resources.database.datasets.review(dataset_id, image, said, tenant=caller.tenant, once=key)
        return dataset_items.one(resources, dataset_id, image)

    return _answer(_with_preview(await run_sync(note), dataset_id, urls), 201)


@router.delete(
    "/{dataset_id}/items/{image}/reviews/{review_id}",
    response_model=Item,
    summary="Withdraw a review",
    responses=problems(401, 404, 422),
)
async def withdraw(
    caller: CallerDep,
    dataset_id: DatasetId,
    image: Image,
    review_id: UUID,
    resources: ResourcesDep,
    urls: ResultUrlsDep,
) -> Response:
    """The review before it counts again. With API keys, only the key that wrote a review can withdraw it."""

    def take_back() -> Item:
        resources.database.datasets.get(dataset_id, caller.tenant)
        resources.database.datasets.withdraw(dataset_id, image, review_id, caller.name)
        return dataset_items.one(resources, dataset_id, image)

    return _answer(_with_preview(await run_sync(take_back), dataset_id, urls))


# ── shared by the routes ──────────────────────────────────────────────────────────────────────────────


def admit(wanted: DatasetRequest, permission: Permission) -> DatasetRequest:
    """Check that the places in the request may be named, and return the request with them in their normal form.

    Raises:
        InvalidRequest, Forbidden: a place may not be named; the error names the field.
    """
    source = permission.require(wanted.source, "source")
    places: dict[str, str] = {"source": source}
    if wanted.source_root is not None:
        places["source_root"] = permission.require(wanted.source_root, "source_root")
    if wanted.destination is not None:
        places["destination"] = permission.require(wanted.destination, "destination")
    if places.get("destination") != source:
        if wanted.destination is not None:
            permission.require_destination(wanted.destination)
    elif wanted.destination_format not in ("kohya", "imagefolder"):
        raise InvalidRequest(
            "The destination is the source; only kohya and imagefolder put captions beside the images.",
            field="destination",
        )
    return wanted.model_copy(update=places)


def _permission(caller: Caller, resources: Resources) -> Permission:
    return Permission.of(resources.settings, caller.dataset_roots)


def _clear(store: ObjectStore, dataset_id: UUID) -> None:
    """Remove the objects of a data set whose row was deleted; the housekeeper collects any that remain."""
    try:
        store.delete_folder(dataset_objects.folder(dataset_id))
    except StorageUnavailable as error:
        log.warning("objects of data set %s are left to the housekeeper: %s", dataset_id, error)


async def _steer(
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
            resources.outbox.publish_dataset(dataset_id)
        return dataset

    return _answer(await run_sync(steer), status)


def _with_preview(item: Item, dataset_id: UUID, urls: ResultUrls) -> Item:
    return item.model_copy(update={"preview_url": urls.preview(dataset_id, item.number)})


def _answer(shown: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        shown.model_dump_json(), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json"
    )
