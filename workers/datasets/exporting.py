"""A data set on its way out: every shard's results in order, completed by what people said, to the destination."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from hashlib import sha256

from shared.database import Database
from shared.database.datasets import DatasetClaim
from shared.intake.dataset_places import require_allowed
from shared.objects.datasets import all_images
from shared.objects.storage import ObjectStore
from shared.settings import Settings
from tuwen.annotations import Annotation, Review, standing
from tuwen.datasets import DatasetRequest
from workers.datasets.access import open_allowed
from workers.datasets.exports import write
from workers.datasets.sources import SourceImage

PAGE = 1000
"""Images whose reviews are looked up at a time."""


def export(
    settings: Settings, database: Database, store: ObjectStore, claim: DatasetClaim, wanted: Callable[[], None]
) -> None:
    """Write what is known of a data set to its destination, from the start: one that was cut off left nothing there.

    Args:
        wanted: asked now and then whether to go on; raises when not.

    Raises:
        DestinationUnusable: it cannot be written; a disk may be full.
        Forbidden: it may not be named here.
        SourceUnusable, StorageUnavailable, DatabaseUnavailable, NotFound
    """
    request = claim.request
    destination = require_allowed(request.destination or "", settings, "destination", followed=True)
    with open_allowed(request, settings) as source:
        write(
            reviewed(database, store, claim, wanted),
            destination,
            settings,
            destination_format=request.destination_format,
            overwrite=request.overwrite,
            read=source.read,
            run=lineage(claim.request),
            source=request.source,
        )


def lineage(request: DatasetRequest) -> str:
    """Names the runs of one source that ask the same: each may replace what the one before has exported."""
    asked = json.dumps([request.source, request.parameters], sort_keys=True)
    return sha256(asked.encode()).hexdigest()[:32]


def reviewed(
    database: Database, store: ObjectStore, claim: DatasetClaim, wanted: Callable[[], None]
) -> Iterator[tuple[Annotation, SourceImage | None]]:
    """All images of a data set, each with what people said of it."""
    reviews: dict[int, list[Review]] = {}
    for number, (planned, annotation) in enumerate(all_images(database, store, claim.id)):
        if number % PAGE == 0:
            wanted()
            reviews = database.datasets.reviews(claim.id, range(number, number + PAGE))
        image = SourceImage.from_fields(planned.image) if planned.image is not None else None
        if said := reviews.get(number):
            # Before those that an earlier run over the same source has left.
            annotation = annotation.model_copy(update={"reviews": standing([*said, *annotation.reviews])})
        yield annotation, image
