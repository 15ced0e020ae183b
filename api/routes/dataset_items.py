"""Single images of a data set, as people look through them: page by page, in order, or by score and confidence."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

import numpy as np
import numpy.typing as npt

from api.producer.resources import Resources
from shared.objects.dataset_index import ANNOTATED, DROPPED, FAILED, OUT_OF_DOMAIN, Entries
from shared.objects.datasets import NOT_DONE, of_shard
from tuwen.annotations import Annotation
from tuwen.datasets import Dataset, Item, ItemPage, ReviewRequest
from tuwen.errors import Conflict, InvalidRequest, NotFound

Order = Literal["number", "score", "confidence", "-score", "-confidence"]
Only = Literal[
    "annotated", "failed", "dropped", "out_of_domain", "accepted", "rejected", "edited", "reviewed", "unreviewed"
]

MOST_INDEXED = 200_000
"""Images that one request goes through to sort or to filter: some seconds for the first one, nothing after it."""

Numbers = npt.NDArray[np.int64]
_FLAGS = {"annotated": ANNOTATED, "failed": FAILED, "dropped": DROPPED, "out_of_domain": OUT_OF_DOMAIN}
_UNKNOWN = 2.0
"""Sorted by as if it were the value of what is not known: that comes last, whichever way round."""


def page(
    resources: Resources, dataset: Dataset, order: Order, only: Only | None, cursor: str | None, limit: int
) -> ItemPage:
    """The images that come after `cursor`, at most `limit`; fewer, and yet a `next`, where most do not pass the filter.

    Raises:
        InvalidRequest: the cursor is of another list, or there are too many images to be sorted.
    """
    images = dataset.progress.images
    try:
        if order == "number" and only is None:
            start = int(cursor or -1) + 1
            following = [(0.0, number) for number in range(start, min(images, start + limit + 1))]
            return _shown(resources, dataset.id, order, following, limit, (start, images))
        if images <= MOST_INDEXED:
            following, place = _ranked(resources, dataset.id, order, only, cursor, limit + 1)
            return _shown(resources, dataset.id, order, following, limit, place)
        if order != "number":
            raise InvalidRequest(f"Only data sets of up to {MOST_INDEXED} images are sorted.", field="sort")
        return _filtered(resources, dataset.id, only, int(cursor or -1) + 1, limit)
    except ValueError as error:
        raise InvalidRequest("This cursor is of another list.", field="cursor") from error


def one(resources: Resources, dataset_id: UUID, number: int) -> Item:
    """Raises NotFound."""
    return _items(resources, dataset_id, [number])[0]


def require_reviewable(item: Item, said: ReviewRequest) -> None:
    """Refuse what would have no effect: nothing brings an image into an export that was never read, and of one that
    the models failed on there is nothing to judge before a person has put it into words.

    Raises:
        Conflict: saying what to do instead.
    """
    annotation = item.annotation
    error = annotation.error
    if error is None:
        return
    if error.code == NOT_DONE.code:
        raise Conflict(f"Image {item.number} has not been annotated yet; wait, or have the run go on.")
    if not annotation.decoded:
        raise Conflict(
            f"Image {item.number} was never read as an image ({error.code}), and no caption brings it into an export; "
            "mend it, then retry what failed."
        )
    if said.text is None and not any(review.text for review in item.reviews):
        raise Conflict(
            f"The models failed on image {item.number} ({error.code}), so there are no words to judge yet; "
            "write its caption, or retry what failed."
        )


def _ranked(
    resources: Resources, dataset_id: UUID, order: Order, only: Only | None, cursor: str | None, most: int
) -> tuple[list[tuple[float, int]], tuple[int, int]]:
    """Of the images that pass, from the cursor on: what they are sorted by, and their numbers. Besides, how many that
    pass lie before these, and how many pass in all."""
    entries = resources.index.whole(dataset_id)
    numbers = np.arange(len(entries))
    passing = numbers[_pass(resources, dataset_id, only, entries, numbers)]
    values = _values(order, entries[passing])
    sequence = np.lexsort((passing, values))
    if cursor:
        value, number = _after(order, cursor)
        later = (values > value) | ((values == value) & (passing > number))
        sequence = sequence[later[sequence]]
    following = [(float(values[place]), int(passing[place])) for place in sequence[:most]]
    return following, (len(passing) - len(sequence), len(passing))


def _values(order: Order, entries: Entries) -> npt.NDArray[np.float64]:
    if order == "number":
        return np.zeros(len(entries))
    values = entries[order.removeprefix("-")].astype(np.float64)
    return np.where(np.isnan(values), _UNKNOWN, -values if order.startswith("-") else values)


def _filtered(resources: Resources, dataset_id: UUID, only: Only | None, start: int, limit: int) -> ItemPage:
    """Of a data set too large for a list of all that pass: from a number on, until the page is full or enough was
    gone through."""
    passing: list[int] = []
    first, seen = start, 0
    try:
        shard, first = resources.database.shards.locate(dataset_id, start)
        at, ended = shard.number, False
    except NotFound:
        ended = True
    while not ended and seen < MOST_INDEXED and len(passing) <= limit:
        shards = resources.database.shards.all(dataset_id, first=at, most=1)
        if not shards:
            ended = True
            break
        entries = resources.index.shard(shards[0])
        numbers = np.arange(first, first + len(entries))
        found = numbers[_pass(resources, dataset_id, only, entries, numbers)]
        passing += found[found >= start].tolist()
        at, first, seen = at + 1, first + len(entries), seen + len(entries)
    shown = passing[:limit]
    last = shown[-1] if len(passing) > limit else None if ended else first - 1
    return ItemPage(items=tuple(_items(resources, dataset_id, shown)), next=None if last is None else str(last))


def _pass(
    resources: Resources, dataset_id: UUID, only: Only | None, entries: Entries, numbers: Numbers
) -> npt.NDArray[np.bool_]:
    if only is None:
        return np.ones(len(entries), bool)
    if only in _FLAGS:
        passing: npt.NDArray[np.bool_] = (entries["flags"] & _FLAGS[only]) != 0
        return passing
    if only == "edited":
        return np.isin(numbers, list(resources.database.datasets.edited(dataset_id)))
    reviewed = resources.database.datasets.reviewed(dataset_id)
    if only == "unreviewed":
        return ~np.isin(numbers, list(reviewed))
    return np.isin(numbers, [image for image, verdict in reviewed.items() if only in ("reviewed", verdict)])


def _after(order: Order, cursor: str) -> tuple[float, int]:
    if order == "number":
        return 0.0, int(cursor)
    value, number = cursor.split(":")
    return float(value), int(number)


def _shown(
    resources: Resources,
    dataset_id: UUID,
    order: Order,
    following: list[tuple[float, int]],
    limit: int,
    place: tuple[int, int],
) -> ItemPage:
    items = _items(resources, dataset_id, [number for _, number in following[:limit]])
    after = None
    if len(following) > limit:
        value, number = following[limit - 1]
        after = str(number) if order == "number" else f"{value!r}:{number}"
    before, total = place
    return ItemPage(items=tuple(items), next=after, before=before, total=total)


def _items(resources: Resources, dataset_id: UUID, numbers: list[int]) -> list[Item]:
    annotations = _annotations(resources, dataset_id, numbers)
    reviews = resources.database.datasets.reviews(dataset_id, numbers)
    return [
        Item(number=number, annotation=annotations[number], reviews=tuple(reviews.get(number, ())))
        for number in numbers
    ]


def _annotations(resources: Resources, dataset_id: UUID, numbers: list[int]) -> dict[int, Annotation]:
    """Every shard that holds some of them is read once. Raises NotFound."""
    found: dict[int, Annotation] = {}
    left = sorted(numbers)
    while left:
        shard, first = resources.database.shards.locate(dataset_id, left[0])
        here = [number for number in left if number < first + shard.images]
        annotations: Any = of_shard(resources.store, shard, [number - first for number in here])
        found |= {number: annotation for number, (_, annotation) in zip(here, annotations, strict=True)}
        left = left[len(here) :]
    return found
