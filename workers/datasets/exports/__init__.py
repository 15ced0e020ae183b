"""Where annotated data sets go: one pass over the images, streamed, and complete at the destination or not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from shared.annotations import Annotation
from shared.datasets import ExportFormat
from shared.errors import DestinationUnusable
from shared.settings import Settings
from workers.datasets.sources import SourceImage

Image = tuple[Annotation, SourceImage | None]
Read = Callable[[SourceImage], bytes]


def write(
    images: Iterable[Image],
    destination: str,
    settings: Settings,  # noqa: ARG001
    *,
    destination_format: ExportFormat,
    overwrite: bool,  # noqa: ARG001
    read: Read,  # noqa: ARG001
) -> None:
    """Write all images to `destination`.

    Raises:
        DestinationUnusable: it cannot be written.
    """
    if destination_format != "jsonl":
        raise DestinationUnusable(f"there is no export to {destination_format} yet", field="destination_format")
    folder = Path(destination)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / "annotations.jsonl.part"
        with part.open("wb") as file:
            for annotation, _ in images:
                file.write(annotation.model_dump_json(exclude_defaults=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / "annotations.jsonl")
    except OSError as error:
        raise DestinationUnusable(f"cannot write to {destination}: {error.strerror}", field="destination") from error
