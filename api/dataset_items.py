"""Single images of a data set, as people look through them: page by page, in order, or by score and confidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import nsmallest
from itertools import islice
from typing import Literal
from uuid import UUID

from api.resources import Resources
from shared.annotations import Annotation
from shared.dataset_objects import all_images, of_shard
from shared.datasets import Dataset, Item, ItemPage
from shared.errors import InvalidRequest, NotFound

Order = Literal["number", "score", "confidence", "-score", "-confidence"]
Only = Literal["annotated", "failed", "dropped", "out_of_domain", "accepted", "rejected", "reviewed", "unreviewed"]

MOST_SORTED = 200_000
"""Images that are gone through to sort them: some seconds."""

Numbered = tuple[int, Annotation]
_REVIEWS = frozenset(("accepted", "rejected", "reviewed", "unreviewed"))


def page(
    resources: Resources, dataset: Dataset, order: Order, only: Only | None, cursor: str | None, limit: int
) -> ItemPage:
    """The images that come after `cursor`, at most `limit`.

    Raises:
        InvalidRequest: the cursor is of another list, or there are too many images to be sorted.
    """
    wanted = _filter(resources, dataset.id, only)
    try:
        found = _in_order(resources, dataset, wanted, cursor) if order == "number" else None
        if found is None:
            found = _sorted(resources, dataset, order, wanted, cursor, limit + 1)
    except ValueError as error:
        raise InvalidRequest("This cursor is of another list.", field="cursor") from error
    images = list(islice(found, limit + 1))
    items = _items(resources, dataset.id, images[:limit])
    following = _cursor(order, images[limit - 1]) if len(images) > limit else None
    return ItemPage(items=tuple(items), next=following)


def one(resources: Resources, dataset_id: UUID, number: int) -> Item:
    """Raises NotFound."""
    shard, first = resources.database.shards.locate(dataset_id, number)
    _, annotation = next(islice(of_shard(resources.store, shard), number - first, None))
    return _items(resources, dataset_id, [(number, annotation)])[0]


def _in_order(
    resources: Resources, dataset: Dataset, wanted: Callable[[Numbered], bool], cursor: str | None
) -> Iterator[Numbered]:
    start, first, first_shard = int(cursor or -1) + 1, 0, 0
    if start:
        try:
            shard, first = resources.database.shards.locate(dataset.id, start)
        except NotFound:
            return
        first_shard = shard.number
    found = all_images(resources.database, resources.store, dataset.id, first_shard=first_shard)
    for number, (_, annotation) in enumerate(found, first):
        if number >= start and wanted((number, annotation)):
            yield number, annotation


def _sorted(
    resources: Resources,
    dataset: Dataset,
    order: Order,
    wanted: Callable[[Numbered], bool],
    cursor: str | None,
    count: int,
) -> Iterator[Numbered]:
    if dataset.progress.images > MOST_SORTED:
        raise InvalidRequest(f"Only data sets of up to {MOST_SORTED} images are sorted.", field="sort")
    after = tuple(map(float, cursor.split(":"))) if cursor else None
    if after is not None and len(after) != 2:
        raise ValueError("not a cursor of a sorted list")
    images = ((number, found) for number, (_, found) in enumerate(_all(resources, dataset)) if wanted((number, found)))
    following = (image for image in images if after is None or _key(order, image) > after)
    return iter(nsmallest(count, following, key=lambda image: _key(order, image)))


def _all(resources: Resources, dataset: Dataset) -> Iterator[tuple[object, Annotation]]:
    return all_images(resources.database, resources.store, dataset.id)


def _key(order: Order, image: Numbered) -> tuple[float, int]:
    """What is not known comes last, whichever way round."""
    number, annotation = image
    value = score(annotation) if order.endswith("score") else confidence(annotation)
    if value is None:
        return 2.0, number
    return (-value if order.startswith("-") else value), number


def _cursor(order: Order, image: Numbered) -> str:
    if order == "number":
        return str(image[0])
    value, number = _key(order, image)
    return f"{value!r}:{number}"


def score(annotation: Annotation) -> float | None:
    """Of the caption that fits worst."""
    scores = [caption.score for caption in annotation.captions if caption.score is not None]
    if annotation.existing_score is not None:
        scores.append(annotation.existing_score)
    return min(scores, default=None)


def confidence(annotation: Annotation) -> float | None:
    """Of what the models are least sure of."""
    found = [caption.confidence for caption in annotation.captions]
    if annotation.recognition is not None:
        found.append(annotation.recognition.confidence)
    return min(found, default=None)


def _filter(resources: Resources, dataset_id: UUID, only: Only | None) -> Callable[[Numbered], bool]:
    if only is None:
        return lambda _: True
    if only in _REVIEWS:
        reviewed = resources.database.datasets.reviewed(dataset_id)
        if only == "unreviewed":
            return lambda image: image[0] not in reviewed
        return lambda image: image[0] in reviewed and only in ("reviewed", reviewed[image[0]])
    return lambda image: _is(only, image[1])


def _is(only: str, annotation: Annotation) -> bool:
    match only:
        case "failed":
            return annotation.error is not None
        case "dropped":
            return annotation.drop is not None
        case "out_of_domain":
            said = [caption.out_of_domain for caption in annotation.captions]
            return any(said) or (annotation.recognition is not None and annotation.recognition.out_of_domain)
    return annotation.ok


def _items(resources: Resources, dataset_id: UUID, images: list[Numbered]) -> list[Item]:
    reviews = resources.database.datasets.reviews(dataset_id, [number for number, _ in images])
    return [
        Item(number=number, annotation=annotation, reviews=tuple(reviews.get(number, ())))
        for number, annotation in images
    ]
