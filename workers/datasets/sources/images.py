"""One entry of a source: an image and where its bytes lie, or a row that cannot be one and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from shared.settings import Settings
from tuwen.errors import ImageCorrupt, PayloadTooLarge

# Whatever people call an image, the formats that are refused when read among them: a file that is left out silently
# would be an image lost. What a file really is, its first bytes tell.
IMAGE_SUFFIXES = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif")
) | frozenset(
    (".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".ico", ".tga", ".ppm", ".pgm", ".exr", ".dng", ".cr2", ".nef")
)


def is_image_name(name: str) -> bool:
    """Whether a file's suffix is that of an image, in upper or lower case."""
    dot = name.rfind(".")
    return dot >= 0 and name[dot:].lower() in IMAGE_SUFFIXES


INLINE = ...
"""Stands for binary values of a table, which stay in it until `Reader` reads them."""


class HeldAs(StrEnum):
    """How the bytes are kept."""

    FILE = "file"
    """`path` is a file or an object."""
    PART = "part"
    """`length` bytes of `path` from `offset` on, as in a tar."""
    ZIPPED = "zipped"
    """The member of the zip `path` whose local header is at `offset`; `length` is its compressed size."""
    CELL = "cell"
    """A data URL or bytes in `column` of a row of the table `path`: the line at `offset`, or row number `offset`."""
    URL = "url"
    """`path` is an http(s) URL."""


class RowProblem(StrEnum):
    """Why a row names no image. Where reading fails for the same reason, that error has the same code."""

    NOT_FOUND = "not_found"
    EMPTY = "image_corrupt"
    TOO_LARGE = "payload_too_large"
    OUTSIDE = "path_forbidden"
    DUPLICATE = "duplicate_row"
    INVALID = "invalid_row"
    UNREADABLE = "unreadable"
    DAMAGED = "archive_damaged"
    URL_FORBIDDEN = "url_forbidden"
    ENCODING = "encoding_unknown"
    CAPTION = "caption_unreadable"
    ARCHIVE = "archive_in_folder"


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image of a source: enough to read it in another process, and all that the source says of it.

    A plan has a line of JSON for each.
    """

    name: str
    """Unique in the source: a relative path with / between its parts, fit to name a file in an export."""
    path: str
    held: HeldAs = HeldAs.FILE
    offset: int | None = None
    length: int | None = None
    column: str | None = None
    size: int | None = None
    """Bytes of the image, where that is known without reading it."""
    version: str | None = None
    """A sign that changes with the content, where there is one: time of modification, ETag, CRC."""
    captions: tuple[str, ...] = ()
    custom_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return one line of JSON, in ASCII because file names need not be UTF-8."""
        return json.dumps({key: value for key, value in self._fields() if value not in (None, (), {})})

    def _fields(self) -> Iterator[tuple[str, Any]]:
        # dataclasses.asdict copies each value deeply, which took longer than all the rest of a plan's line
        return ((name, getattr(self, name)) for name in self.__slots__)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Restore an image from the JSON object of a plan's line."""
        fields = dict(fields)
        fields["held"] = HeldAs(fields["held"])
        fields["captions"] = tuple(fields.get("captions", ()))
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class SourceProblem:
    """A row or file of a source that is not an image, and why."""

    name: str
    """The source's own name for it; neither unique nor fit for a path."""
    code: RowProblem
    detail: str


SourceEntry = SourceImage | SourceProblem


def require_size(size: int, settings: Settings) -> None:
    """Refuse an image by its size alone, before a byte is read.

    Raises:
        ImageCorrupt: it is empty.
        PayloadTooLarge: it has more than `settings.max_image_bytes`.
    """
    if size == 0:
        raise ImageCorrupt("the image is empty")
    if size > settings.max_image_bytes:
        raise PayloadTooLarge(f"the image has {size} bytes, more than the {settings.max_image_bytes} allowed")
