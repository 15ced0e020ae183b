"""Single images of a data set, page by page for people: in order, or sorted by score or confidence."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

import numpy as np
import numpy.typing as npt

from api.producer.resources import Resources
from shared.objects.dataset_index import ANNOTATED, DROPPED, FAILED, OUT_OF_DOMAIN, Entries
from shared.objects.datasets import NOT_DONE, shard_images
from tuwen.annotations import Annotation
from tuwen.datasets import Dataset, Item, ItemPage, ReviewRequest
from tuwen.errors import Conflict, InvalidRequest, NotFound

Order = Literal["number", "score", "confidence", "-score", "-confidence"]
Only = Literal[
    "annotated", "failed", "dropped", "out_of_domain", "accepted", "rejected", "edited", "reviewed", "unreviewed"
]

MOST_INDEXED = 200_000
"""Most images that one request sorts or filters: the first request takes some seconds, later ones read memory."""

Numbers = npt.NDArray[np.int64]
_FLAGS = {"annotated": ANNOTATED, "failed": FAILED, "dropped": DROPPED, "out_of_domain": OUT_OF_DOMAIN}
_UNKNOWN = 2.0
"""Value by which unknown values are sorted, so that they come last in either direction."""


def page(
    resources: Resources, dataset: Dataset, order: Order, only: Only | None, cursor: str | None, limit: int
) -> ItemPage:
    """The images after `cursor`, at most `limit`; a page with a `next` may have fewer, where most do not pass the
    filter.

    Raises:
        InvalidRequest: the cursor belongs to another list, or there are too many images to sort.
    """
    images = dataset.progress.images
    try:
        if order == "number" and only is None:
            start = int(cursor or -1) + 1
            following = [(0.0, number) for number in range(start, min(images, start + limit + 1))]
            return _to_page(resources, dataset.id, order, following, limit, (start, images))
        if images <= MOST_INDEXED:
            following, place = _rank(resources, dataset.id, order, only, cursor, limit + 1)
            return _to_page(resources, dataset.id, order, following, limit, place)
        if order != "number":
            raise InvalidRequest(
                f"Only data sets of up to {MOST_INDEXED} images can be sorted; sort by number.", field="sort"
            )
        return _filtered_page(resources, dataset.id, only, int(cursor or -1) + 1, limit)
    except ValueError as error:
        raise InvalidRequest(
            "This cursor belongs to another list; use `next` of this list's last page.", field="cursor"
        ) from error


def previous(page: ItemPage, limit: int) -> dict[str, str | None] | None:
    """Parameters of the page before this one, in a list of all images by number; None before the first."""
    if not page.before:
        return None
    first = max(0, page.before - limit)
    return {"cursor": str(first - 1) if first else None, "limit": str(min(limit, page.before))}


def one(resources: Resources, dataset_id: UUID, number: int) -> Item:
    """Raises NotFound."""
    return _items(resources, dataset_id, [number])[0]


def require_reviewable(item: Item, said: ReviewRequest) -> None:
    """Refuse a review that would have no effect: an image that was never read cannot come into an export, and an image
    that the models failed on cannot be judged before a person has written a caption for it.

    Raises:
        Conflict: the review would have no effect; the message says what to do instead.
    """
    annotation = item.annotation
    error = annotation.error
    if error is None:
        return
    if error.code == NOT_DONE.code:
        raise Conflict(f"Image {item.number} has not been annotated yet; wait, or resume or retry the run.")
    if not annotation.decoded:
        raise Conflict(
            f"Image {item.number} could not be read ({error.code}), so it cannot be exported; "
            "repair the file, then retry the failed images."
        )
    if said.text is None and not any(review.text for review in item.reviews):
        raise Conflict(
            f"The models failed on image {item.number} ({error.code}), so there is no caption to judge yet; "
            "write its caption, or retry the failed images."
        )


def _rank(
    resources: Resources, dataset_id: UUID, order: Order, only: Only | None, cursor: str | None, most: int
) -> tuple[list[tuple[float, int]], tuple[int, int]]:
    """The images that pass the filter, from the cursor on, as pairs of sort value and number. Also returned: how many
    that pass lie before these, and how many pass in all."""
    entries = resources.index.dataset_entries(dataset_id)
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


def _filtered_page(resources: Resources, dataset_id: UUID, only: Only | None, start: int, limit: int) -> ItemPage:
    """A page of a data set that is too large to list all images that pass: from a number on, until the page is full or
    enough images were examined."""
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
        entries = resources.index.shard_entries(shards[0])
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
        return np.isin(numbers, list(resources.database.datasets.edited_images(dataset_id)))
    reviewed = resources.database.datasets.verdicts(dataset_id)
    if only == "unreviewed":
        return ~np.isin(numbers, list(reviewed))
    return np.isin(numbers, [image for image, verdict in reviewed.items() if only in ("reviewed", verdict)])


def _after(order: Order, cursor: str) -> tuple[float, int]:
    if order == "number":
        return 0.0, int(cursor)
    value, number = cursor.split(":")
    return float(value), int(number)


def _to_page(
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
    """Annotations by image number; every shard that holds some of them is read once. Raises NotFound."""
    found: dict[int, Annotation] = {}
    left = sorted(numbers)
    while left:
        shard, first = resources.database.shards.locate(dataset_id, left[0])
        here = [number for number in left if number < first + shard.images]
        annotations: Any = shard_images(resources.store, shard, [number - first for number in here])
        found |= {number: annotation for number, (_, annotation) in zip(here, annotations, strict=True)}
        left = left[len(here) :]
    return found
