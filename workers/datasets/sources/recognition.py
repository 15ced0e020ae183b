"""What a path or S3 prefix is: by its name first, by its content where that leaves a doubt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shared.datasets import SourceFormat
from shared.errors import SourceUnusable
from shared.settings import Settings
from workers.datasets.sources.columns import Lookup
from workers.datasets.sources.images import Entry
from workers.datasets.sources.places import Folder, open_place
from workers.datasets.sources.reading import Reader
from workers.datasets.sources.tree import list_tree


@dataclass(frozen=True, slots=True)
class Recognised:
    uri: str
    format: SourceFormat
    entries: Callable[[], Iterator[Entry]]
    reader: Reader


def recognise(
    uri: str,
    settings: Settings,
    source_format: SourceFormat,
    root: str | None,
    image_column: str | None,
    caption_column: str | None,
) -> Recognised:
    place = open_place(uri, settings)
    lookup = Lookup(settings, place, uri, image_column=image_column, caption_column=caption_column)
    if isinstance(place, Folder):
        try:
            os.scandir(uri).close()
        except OSError as error:
            raise SourceUnusable(f"{uri} cannot be read: {error.strerror}", field="source") from error
    return Recognised(uri, "folder", lambda: list_tree(lookup), Reader(uri, settings))
