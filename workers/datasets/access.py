"""Opening sources, once it is known that they may be used."""

from __future__ import annotations

from shared.intake.dataset_places import require_allowed
from shared.settings import Settings
from tuwen.datasets import DatasetRequest
from workers.datasets.sources import Source, open_source


def open_allowed(request: DatasetRequest, settings: Settings) -> Source:
    """Open the source of a data set, if it may be used.

    Raises:
        Forbidden: the settings do not allow the place, or a symbolic link leads to one that they do not allow.
        SourceUnusable, StorageUnavailable, ConfigurationError
    """
    for place in (request.source, request.source_root):
        if place is not None:
            require_allowed(place, settings, "source", followed=True)
    return open_source(
        request.source,
        settings,
        format=request.source_format,
        root=request.source_root,
        image_column=request.image_column,
        caption_column=request.caption_column,
        encoding=request.encoding,
    )
