"""Reading the bytes of an image that a source named, in any process."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from struct import Struct
from types import TracebackType
from typing import Any, Self

from shared.intake.beneath import EVERYWHERE, Roots
from shared.intake.data_urls import decode_data_url, is_data_url
from shared.intake.fetch import Fetcher
from shared.settings import Settings
from tuwen.errors import ImageCorrupt, NotFound
from workers.datasets.sources.images import HeldAs, SourceImage, require_size
from workers.datasets.sources.parquet import open_parquet, picture_of
from workers.datasets.sources.places import open_place
from workers.datasets.sources.rows import parse_any_object

_LOCAL_HEADER = Struct("<4s5HIIIHH")  # of a zip's member: APPNOTE.TXT 4.3.7
_STORED, _DEFLATED = 0, 8


class Reader:
    """Reads images by their entries alone; the source itself is not listed or examined.

    It is thread-safe, except for images in the cells of a Parquet file.
    """

    def __init__(self, root: str, settings: Settings, *, home: str | None = None, roots: Roots = EVERYWHERE) -> None:
        """`root` is where paths of images start from, `home` where archives and tables lie, if elsewhere.

        Local files are opened beneath `roots` only.
        """
        self._settings = settings
        self._root = open_place(root, settings, roots)
        self._home = open_place(home, settings, roots) if home is not None else self._root
        self._fetcher: Fetcher | None = None
        self._row_group: tuple[tuple[str, int], Any] | None = None

    def read(self, image: SourceImage) -> bytes:
        """Read the file of the image, at most `settings.max_image_bytes`.

        Raises:
            NotFound: the file does not exist any more.
            PathForbidden: a link leads out of the roots by now.
            ImageCorrupt, PayloadTooLarge: its size is wrong; mostly found before it is read.
            StorageUnavailable: the place does not answer.
            UrlForbidden, FetchRefused, FetchFailed: as `Fetcher.get`.
        """
        ways: dict[HeldAs, Callable[[SourceImage], bytes]] = {
            HeldAs.FILE: lambda image: self._root.load(image.path, self._settings),
            HeldAs.PART: self._read_part,
            HeldAs.ZIPPED: self._read_zipped,
            HeldAs.CELL: self._read_cell,
            HeldAs.URL: self._read_url,
        }
        data = ways[image.held](image)
        require_size(len(data), self._settings)
        return data

    def close(self) -> None:
        """Close the connections to web servers."""
        if self._fetcher is not None:
            self._fetcher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_part(self, image: SourceImage) -> bytes:
        offset, length = _extent(image)
        require_size(length, self._settings)
        data = self._home.read(image.path, offset, length)
        if len(data) < length:
            raise ImageCorrupt("the archive ends within the image")
        return data

    def _read_zipped(self, image: SourceImage) -> bytes:
        offset, length = _extent(image)
        header = self._home.read(image.path, offset, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size:
            raise ImageCorrupt("the archive ends before the image")
        signature, _, _, method, *_, name, extra = _LOCAL_HEADER.unpack(header)
        if signature != b"PK\3\4":
            raise ImageCorrupt("the archive is damaged, or was replaced after it was listed")
        data = self._home.read(image.path, offset + _LOCAL_HEADER.size + name + extra, length)
        if method == _STORED:
            return data
        if method != _DEFLATED:
            raise ImageCorrupt("the archive compresses with a method other than deflate")
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            # One byte more than allowed is enough to know; a bomb would go on.
            return inflate.decompress(data, self._settings.max_image_bytes + 1)
        except zlib.error as error:
            raise ImageCorrupt("the archive is damaged within the image") from error

    def _read_url(self, image: SourceImage) -> bytes:
        if self._fetcher is None:
            self._fetcher = Fetcher(self._settings)
        return self._fetcher.get(image.path)

    def _read_cell(self, image: SourceImage) -> bytes:
        value = self._read_parquet_cell(image) if image.path.endswith(".parquet") else self._read_json_cell(image)
        value = picture_of(value)
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str):
            raise NotFound("the row holds no image any more")
        try:
            return decode_data_url(value)
        except ValueError as error:
            raise ImageCorrupt("the data URL is not base64") from error

    def _read_json_cell(self, image: SourceImage) -> object:
        offset, length = _extent(image)
        values = parse_any_object(self._home.read(image.path, offset, length))
        return None if values is None else first_data_url(values.get(image.column or ""))

    def _read_parquet_cell(self, image: SourceImage) -> object:
        row = image.offset or 0
        with self._home.open(image.path) as file:
            table = open_parquet(file, image.path)
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if row < rows:
                    break
                row -= rows
            else:
                return None
            # A shard asks for one row after the other, and a group is read as a whole.
            key = (image.path, group)
            if self._row_group is None or self._row_group[0] != key:
                self._row_group = (key, table.read_row_group(group, columns=[image.column]).column(0))
        return self._row_group[1][row].as_py()


def first_data_url(value: object) -> str | None:
    """The first string below `value` that is a data URL."""
    if isinstance(value, str):
        return value if is_data_url(value) else None
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for found in map(first_data_url, inner) if found), None)


def _extent(image: SourceImage) -> tuple[int, int]:
    if image.offset is None or image.length is None:
        raise NotFound(f"the plan does not say where in {image.path!r} the image is")
    return image.offset, image.length
