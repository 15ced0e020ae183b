"""Export of a data set: all shards' results in order, completed by people's reviews, go to the destination."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256

from shared.database import Database
from shared.database.datasets import DatasetClaim
from shared.intake.dataset_places import Permission
from shared.objects.datasets import all_images
from shared.objects.storage import ObjectStore
from shared.settings import Settings
from tuwen.annotations import Annotation, Review, standing_reviews
from tuwen.datasets import DatasetRequest
from tuwen.errors import DestinationUnusable, Forbidden, PathForbidden
from workers.datasets.access import open_allowed
from workers.datasets.exports import Owner, write
from workers.datasets.sources import SourceImage

PAGE = 1000
"""Images whose reviews are looked up at a time."""


def export(
    settings: Settings, database: Database, store: ObjectStore, claim: DatasetClaim, require_wanted: Callable[[], None]
) -> None:
    """Write what is known of a data set to its destination, from the start: an interrupted export left nothing there.

    Args:
        require_wanted: called now and then; raises when the export is no longer wanted.

    Raises:
        DestinationUnusable: it cannot be written; a disk may be full.
        Forbidden: the key may not use the destination or the source, or the destination is another tenant's.
        Conflict: an unfinished data set of another tenant is to be written there.
        SourceUnusable, StorageUnavailable, DatabaseUnavailable, NotFound
    """
    request, places = claim.request, database.dataset_places
    key_roots = places.key_roots(claim.id)
    permission = Permission.of(settings, key_roots)
    with closing(permission.open()) as roots, open_allowed(request, settings, key_roots) as source:
        destination = permission.require_followed(request.destination or "", "destination", roots)
        was_ours = places.take(destination, claim.tenant, claim.id)
        # Exports of earlier releases do not say whose they are. In an open installation there is only one tenant.
        owner = Owner(lineage(request), claim.tenant, overwrite=request.overwrite, adopts=was_ours or key_roots is None)
        try:
            write(
                read_reviewed(database, store, claim, require_wanted),
                destination,
                settings,
                owner=owner,
                destination_format=request.destination_format,
                read=source.read,
                source=request.source,
                roots=roots,
            )
        except (DestinationUnusable, Forbidden, PathForbidden):
            if not was_ours:  # and nothing of it is there now
                places.release(destination, claim.tenant)
            raise


def lineage(request: DatasetRequest) -> str:
    """Name the runs of one source that ask the same: each may replace what the one before has exported."""
    asked = json.dumps([request.source, request.parameters], sort_keys=True)
    return sha256(asked.encode()).hexdigest()[:32]


def read_reviewed(
    database: Database, store: ObjectStore, claim: DatasetClaim, require_wanted: Callable[[], None]
) -> Iterator[tuple[Annotation, SourceImage | None]]:
    """Yield all images of a data set, each with its reviews."""
    reviews: dict[int, list[Review]] = {}
    for number, (planned, annotation) in enumerate(all_images(database, store, claim.id)):
        if number % PAGE == 0:
            require_wanted()
            reviews = database.datasets.reviews(claim.id, range(number, number + PAGE))
        image = SourceImage.from_fields(planned.image) if planned.image is not None else None
        if said := reviews.get(number):
            # These come before the reviews of an earlier run over the same source.
            annotation = annotation.model_copy(update={"reviews": standing_reviews([*said, *annotation.reviews])})
        yield annotation, image
