"""Names of images in an export, and files that lines are written to."""

from __future__ import annotations

import json
from hashlib import sha256
from io import TextIOWrapper
from types import TracebackType
from typing import Any, Self

from shared.intake.held_folder import HeldFolder
from workers.datasets.sources.images import is_image_name

_LONGEST_PART = 200  # bytes; file systems allow 255, and a sidecar's suffix may be longer
_LINE_ENDS = {ord(end): json.dumps(end)[1:-1] for end in "\x85\u2028\u2029"}
_SUFFIXES = {"jpeg": ".jpg", "tiff": ".tif"}


def file_name(name: str, format: str) -> str:  # noqa: A002
    """`name` as the path of a file: with a suffix, and no part longer than file systems allow.

    `format` is the format of the bytes, as in `ImageInfo.format`.
    """
    suffix = _SUFFIXES.get(format, f".{format}")
    named = name if is_image_name(name) else f"{name}{suffix}"
    return "/".join(_shorten(part) for part in named.split("/"))


def suffix_of(format: str) -> str:  # noqa: A002
    """The file suffix of a format, without the dot, as in webdataset's keys."""
    return _SUFFIXES.get(format, format).lstrip(".")


def _shorten(part: str) -> str:
    raw = part.encode()
    if len(raw) <= _LONGEST_PART:
        return part
    stem, dot, suffix = part.rpartition(".")
    kept = raw[: _LONGEST_PART - 40].decode(errors="ignore")
    end = f".{suffix}" if dot and stem and len(suffix) < 10 else ""
    return f"{kept}-{sha256(raw).hexdigest()[:16]}{end}"


def to_line(value: object) -> str:
    """JSON in one line for every reader: some divide lines at more than line feeds, as `str.splitlines` does."""
    return json.dumps(value, ensure_ascii=False).translate(_LINE_ENDS)


def create_text(folder: HeldFolder, name: str) -> TextIOWrapper:
    """Create a file of lines in UTF-8."""
    return TextIOWrapper(folder.create(name), encoding="utf-8", newline="\n")


class Lines:
    """A file of JSON lines; it is created with the first line, or at once if `always`. `continued` goes on with one."""

    def __init__(self, folder: HeldFolder, name: str, *, always: bool = False, continued: bool = False) -> None:
        self._folder = folder
        self._name = name
        self._file = create_text(folder, name) if always else None
        if continued:
            self._file = TextIOWrapper(folder.append(name), encoding="utf-8", newline="\n")

    def write(self, line: dict[str, Any]) -> None:
        """Write one line, and create the file if it does not exist yet."""
        if self._file is None:
            self._file = create_text(self._folder, self._name)
        self._file.write(to_line(line) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
