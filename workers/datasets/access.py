"""Opening the places of data sets, once it is known that their tenant may use them."""

from __future__ import annotations

from contextlib import closing

from shared.database import Database
from shared.database.datasets import DatasetClaim
from shared.intake.dataset_places import Permission
from shared.settings import Settings
from tuwen.datasets import DatasetRequest
from workers.datasets.sources import Source, open_source


def open_allowed(request: DatasetRequest, settings: Settings, key_roots: tuple[str, ...] | None) -> Source:
    """Open the source of a data set, if its key may use it now: its roots may have changed since it was submitted.

    All files of the source are opened beneath those roots, so a link that leads out is an error of that file.

    Raises:
        Forbidden: the key's roots or the settings do not allow the place, or a symbolic link leads out of them.
        SourceUnusable, StorageUnavailable, ConfigurationError
    """
    permission = Permission.of(settings, key_roots)
    roots = permission.open()
    try:
        for place in (request.source, request.source_root):
            if place is not None:
                permission.require_followed(place, "source", roots)
        return open_source(
            request.source,
            settings,
            format=request.source_format,
            root=request.source_root,
            image_column=request.image_column,
            caption_column=request.caption_column,
            encoding=request.encoding,
            roots=roots,
        )
    except BaseException:
        roots.close()
        raise


def vet_places(claim: DatasetClaim, settings: Settings, database: Database) -> None:
    """Check the places of a data set that is about to be planned, and note what it reads: before hours are spent.

    Raises:
        Forbidden: the key may not use a place, or the destination is another tenant's.
        Conflict: an unfinished data set of another tenant is to be written there.
    """
    request = claim.request
    permission = Permission.of(settings, database.dataset_places.key_roots(claim.id))
    with closing(permission.open()) as roots:
        read = {
            permission.require_followed(place, "source", roots)
            for place in (request.source, request.source_root)
            if place is not None
        }
        if request.destination is not None:
            written = permission.require_followed(request.destination, "destination", roots)
            database.dataset_places.require_free(written, claim.tenant)
    if not request.dry_run:
        for place in sorted(read):
            database.dataset_places.note_source(place, claim.tenant, claim.id)
