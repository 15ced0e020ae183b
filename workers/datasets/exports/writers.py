"""What a writer of one format is: it is given one image after the other, numbered from 0 without gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tuwen.annotations import Annotation
from workers.datasets.exports.words import Words


@dataclass(frozen=True, slots=True)
class Exported:
    """One image on its way out."""

    number: int
    annotation: Annotation
    words: Words
    data: bytes
    """The image's file; empty for writers that do not want it."""
    format: str
    """What the file is: png, jpeg…; empty likewise."""


class NameTaken(Exception):
    """The image cannot have its name, because another has it; nothing was written."""


class Writer(Protocol):
    wants_images: bool

    def write(self, exported: Exported) -> None:
        """Raises `NameTaken`; then the number is given again."""

    def close(self) -> None:
        """The last image is written: finish the files."""
