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


class NotWritten(Exception):
    """The image is not in the export; nothing was written. `code` and the message say why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class NameTaken(NotWritten):
    """The image cannot have its name, because another has it."""

    def __init__(self, detail: str) -> None:
        super().__init__("name_taken", detail)


class Writer(Protocol):
    """Writes one export; implementations take the folder in their constructor."""

    wants_images: bool

    def write(self, exported: Exported) -> None:
        """Write one image. Raises `NotWritten`; then the next image gets the same number."""

    def close(self) -> None:
        """Finish the files after the last image."""
