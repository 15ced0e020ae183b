"""The interface of a format's writer, which gets one image after the other, numbered from 0 without gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tuwen.annotations import Annotation
from workers.datasets.exports.words import Words


@dataclass(frozen=True, slots=True)
class Exported:
    """One image to export."""

    number: int
    annotation: Annotation
    words: Words
    data: bytes
    """The image's file; empty for writers that do not want it."""
    format: str
    """The file's format: png, jpeg…; empty for the same writers."""


class NameTaken(Exception):
    """The image cannot have its name, because another has it; nothing was written."""


class Writer(Protocol):
    """Writes one export; implementations take the folder in their constructor."""

    wants_images: bool

    def write(self, exported: Exported) -> None:
        """Write one image. Raises `NameTaken`; then the next image gets the same number."""

    def close(self) -> None:
        """Finish the files after the last image."""
