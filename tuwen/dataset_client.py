"""Data sets through the Python client.

    with Client("http://127.0.0.1:8000") as client:
        dataset = client.datasets.submit(DatasetRequest(source="/data/photos", destination="/data/captions"))
        dataset = client.datasets.wait(dataset.id)

Sources and destinations are paths on the servers' machines, not on the client's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import httpx

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
from tuwen.errors import Unavailable

STREAM_PATIENCE = 60.0
"""Seconds for which a broken stream is reopened: the run continues meanwhile."""
_PAUSE = 1.0

Send = Callable[..., httpx.Response]
ReadEvents = Callable[[str], Iterator[tuple[str, str]]]


class DatasetClient:
    """Data sets, as `Client.datasets`; errors of the API are raised as the client raises them."""

    def __init__(self, send: Send, events: ReadEvents):
        self._send = send
        self._events = events

    def submit(self, request: DatasetRequest) -> Dataset:
        """Start the annotation of a data set.

        Raises:
            Conflict: another one is being written to the destination.
            Forbidden: the source or destination may not be named there.
            InvalidRequest, Unauthorized, Unavailable
        """
        body = request.model_dump_json(exclude_defaults=True)
        # Not retried automatically: if the first request was accepted, the API would refuse the second.
        return self._dataset("POST", "/v1/datasets", content=body, repeatable=False)

    def get(self, id: UUID) -> Dataset:
        """Raises NotFound."""
        return self._dataset("GET", f"/v1/datasets/{id}")

    def iter(self) -> Iterator[Dataset]:
        """All data sets, newest first, fetched page by page."""
        cursor: str | None = None
        while True:
            response = self._send("GET", "/v1/datasets", params={"cursor": cursor} if cursor else {})
            page = DatasetPage.model_validate_json(response.content)
            yield from page.datasets
            cursor = page.next
            if cursor is None:
                return

    def pause(self, id: UUID) -> Dataset:
        """Pause a data set. Like the other steering methods, raises NotFound, or Conflict when it is over."""
        return self._dataset("POST", f"/v1/datasets/{id}/pause")

    def resume(self, id: UUID) -> Dataset:
        """Resume a data set that was paused. Raises NotFound, Conflict."""
        return self._dataset("POST", f"/v1/datasets/{id}/resume")

    def cancel(self, id: UUID) -> Dataset:
        """Cancel a data set; finished annotations stay. Raises NotFound, Conflict."""
        return self._dataset("POST", f"/v1/datasets/{id}/cancel", repeatable=False)

    def delete(self, id: UUID) -> None:
        """Delete a data set that is over; its source and exported files stay. Raises NotFound, Conflict."""
        self._send("DELETE", f"/v1/datasets/{id}", repeatable=False)

    def retry(self, id: UUID, *, failed_only: bool = False) -> Dataset:
        """Run the images that failed again; unless `failed_only`, also those that a cancel left undone."""
        parameters = {"failed_only": failed_only}
        return self._dataset("POST", f"/v1/datasets/{id}/retry", params=parameters, repeatable=False)

    def prioritize(self, id: UUID, priority: int) -> Dataset:
        """Change the priority of a data set, 0 to 9 (most urgent). Raises NotFound, Conflict."""
        body = PriorityRequest(priority=priority).model_dump_json()
        return self._dataset("POST", f"/v1/datasets/{id}/priority", content=body)

    def export(self, id: UUID, request: ExportRequest) -> Dataset:
        """Export the annotations to any destination; no model runs again."""
        return self._dataset("POST", f"/v1/datasets/{id}/export", content=request.model_dump_json(), repeatable=False)

    def iter_events(self, id: UUID) -> Iterator[Dataset]:
        """Yield the data set as it is now, and again about every second while it changes, until it is over.

        A stream that breaks is reopened; raises Unavailable when that does not succeed within a minute.
        """
        give_up = time.monotonic() + STREAM_PATIENCE
        while True:
            try:
                for _, data in self._events(f"/v1/datasets/{id}/events"):
                    give_up = time.monotonic() + STREAM_PATIENCE
                    dataset = Dataset.model_validate_json(data)
                    yield dataset
                    if dataset.status.terminal:
                        return
            except Unavailable:
                if time.monotonic() > give_up:
                    raise
            time.sleep(_PAUSE)

    def wait(self, id: UUID) -> Dataset:
        """Wait until a data set is over, however it ended, and return it."""
        dataset = self.get(id)
        for dataset in self.iter_events(id):  # noqa: B007 (the last one is returned)
            pass
        return dataset

    def iter_items(self, id: UUID, **query: Any) -> Iterator[Item]:
        """Yield the images of a data set; `query` holds parameters of `GET /v1/datasets/{id}/items`."""
        cursor: str | None = None
        while True:
            parameters = query | ({"cursor": cursor} if cursor else {})
            response = self._send("GET", f"/v1/datasets/{id}/items", params=parameters)
            page = ItemPage.model_validate_json(response.content)
            yield from page.items
            cursor = page.next
            if cursor is None:
                return

    def review(self, id: UUID, image: int, said: ReviewRequest) -> Item:
        """Accept or reject an image, or improve its caption."""
        path = f"/v1/datasets/{id}/items/{image}/reviews"
        response = self._send("POST", path, content=said.model_dump_json(), repeatable=False)
        return Item.model_validate_json(response.content)

    def withdraw(self, id: UUID, image: int, review: UUID) -> Item:
        """Withdraw a review; the review before it counts again."""
        path = f"/v1/datasets/{id}/items/{image}/reviews/{review}"
        return Item.model_validate_json(self._send("DELETE", path, repeatable=False).content)

    def _dataset(self, method: str, path: str, **options: Any) -> Dataset:
        return Dataset.model_validate_json(self._send(method, path, **options).content)
