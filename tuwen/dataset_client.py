"""Data sets through the Python clients.

    with Client("http://127.0.0.1:8000") as client:
        dataset = client.datasets.submit(DatasetRequest(source="/data/photos", destination="/data/captions"))
        dataset = client.datasets.wait(dataset.id)

Sources and destinations are paths on the servers' machines, not on the client's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import UUID

from tuwen.blocking import Blocking, blocking, iterating
from tuwen.datasets import (
    Dataset,
    DatasetPage,
    DatasetRequest,
    ExportRequest,
    Item,
    ItemPage,
    PriorityRequest,
    ReviewRequest,
)
from tuwen.exchange import Exchange, once


class AsyncDatasetClient:
    """`AsyncClient.datasets`; raises what the API refuses, as the client does."""

    def __init__(self, exchange: Exchange):
        self._exchange = exchange

    async def submit(self, request: DatasetRequest) -> Dataset:
        """Have a data set annotated.

        Raises:
            Conflict: another one is being written to the destination.
            Forbidden: the source or destination may not be named there.
            InvalidRequest, Unauthorized, Unavailable
        """
        body = request.model_dump_json(exclude_defaults=True)
        return await self._dataset("POST", "/v1/datasets", content=body, headers=once())

    async def get(self, id: UUID) -> Dataset:
        """Raises NotFound."""
        return await self._dataset("GET", f"/v1/datasets/{id}")

    async def iter(self) -> AsyncGenerator[Dataset, None]:
        """All data sets, newest first, fetched page by page."""
        cursor: str | None = None
        while True:
            response = await self._exchange.send("GET", "/v1/datasets", params={"cursor": cursor} if cursor else {})
            page = DatasetPage.model_validate_json(response.content)
            for dataset in page.datasets:
                yield dataset
            cursor = page.next
            if cursor is None:
                return

    async def pause(self, id: UUID) -> Dataset:
        """Pause a data set. Like the other steering methods, raises NotFound, or Conflict when it is over."""
        return await self._dataset("POST", f"/v1/datasets/{id}/pause")

    async def resume(self, id: UUID) -> Dataset:
        """Resume a paused data set."""
        return await self._dataset("POST", f"/v1/datasets/{id}/resume")

    async def cancel(self, id: UUID) -> Dataset:
        """Cancel a data set; annotations that are finished stay and can be exported."""
        return await self._dataset("POST", f"/v1/datasets/{id}/cancel", repeatable=False)

    async def delete(self, id: UUID) -> None:
        """Delete a data set that is over; its source and exported files stay. Raises NotFound, Conflict."""
        await self._exchange.send("DELETE", f"/v1/datasets/{id}", repeatable=False)

    async def retry(self, id: UUID, *, failed_only: bool = False) -> Dataset:
        """Run the images that failed again; unless `failed_only`, also those that a cancel left undone."""
        parameters = {"failed_only": failed_only}
        return await self._dataset("POST", f"/v1/datasets/{id}/retry", params=parameters, headers=once())

    async def prioritize(self, id: UUID, priority: int) -> Dataset:
        """Change the priority among data sets, from 0 to 9; 9 is most urgent."""
        body = PriorityRequest(priority=priority).model_dump_json()
        return await self._dataset("POST", f"/v1/datasets/{id}/priority", content=body)

    async def export(self, id: UUID, request: ExportRequest) -> Dataset:
        """Export the annotations to any destination; no model runs again."""
        body = request.model_dump_json()
        return await self._dataset("POST", f"/v1/datasets/{id}/export", content=body, headers=once())

    async def iter_events(self, id: UUID) -> AsyncGenerator[Dataset, None]:
        """Yield the data set as it is now, and again about every second while it changes, until it is over.

        A stream that breaks is reopened; raises Unavailable when that does not succeed within a minute.
        """
        async with aclosing(self._exchange.follow(f"/v1/datasets/{id}/events")) as events:
            async for _, data in events:
                dataset = Dataset.model_validate_json(data)
                yield dataset
                if dataset.status.terminal:
                    return

    async def wait(self, id: UUID) -> Dataset:
        """Wait until a data set is over, however it ended, and return it."""
        dataset = await self.get(id)
        async with aclosing(self.iter_events(id)) as states:
            async for dataset in states:  # noqa: B007 (the last one is wanted)
                pass
        return dataset

    async def iter_items(self, /, id: UUID, **query: Any) -> AsyncGenerator[Item, None]:
        """Yield the images of a data set; `query` holds parameters of `GET /v1/datasets/{id}/items`."""
        cursor: str | None = None
        while True:
            parameters = query | ({"cursor": cursor} if cursor else {})
            response = await self._exchange.send("GET", f"/v1/datasets/{id}/items", params=parameters)
            page = ItemPage.model_validate_json(response.content)
            for item in page.items:
                yield item
            cursor = page.next
            if cursor is None:
                return

    async def review(self, id: UUID, image: int, said: ReviewRequest) -> Item:
        """Accept or reject an image, or improve its caption."""
        path = f"/v1/datasets/{id}/items/{image}/reviews"
        response = await self._exchange.send("POST", path, content=said.model_dump_json(), headers=once())
        return Item.model_validate_json(response.content)

    async def withdraw(self, id: UUID, image: int, review: UUID) -> Item:
        """Withdraw a review; the review before it counts again."""
        path = f"/v1/datasets/{id}/items/{image}/reviews/{review}"
        return Item.model_validate_json((await self._exchange.send("DELETE", path, repeatable=False)).content)

    async def _dataset(self, method: str, path: str, **options: Any) -> Dataset:
        return Dataset.model_validate_json((await self._exchange.send(method, path, **options)).content)


class DatasetClient(Blocking[AsyncDatasetClient]):
    """`Client.datasets`; raises what the API refuses, as the client does."""

    submit = blocking(AsyncDatasetClient.submit)
    get = blocking(AsyncDatasetClient.get)
    iter = iterating(AsyncDatasetClient.iter)
    pause = blocking(AsyncDatasetClient.pause)
    resume = blocking(AsyncDatasetClient.resume)
    cancel = blocking(AsyncDatasetClient.cancel)
    delete = blocking(AsyncDatasetClient.delete)
    retry = blocking(AsyncDatasetClient.retry)
    prioritize = blocking(AsyncDatasetClient.prioritize)
    export = blocking(AsyncDatasetClient.export)
    iter_events = iterating(AsyncDatasetClient.iter_events)
    wait = blocking(AsyncDatasetClient.wait)
    iter_items = iterating(AsyncDatasetClient.iter_items)
    review = blocking(AsyncDatasetClient.review)
    withdraw = blocking(AsyncDatasetClient.withdraw)
