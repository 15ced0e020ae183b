"""The columns of a table that name images and captions, and the images that their values name."""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import chain

import httpx

from shared.intake.data_urls import is_data_url
from shared.intake.fetch import vet_url
from shared.settings import Settings
from tuwen.errors import NotFound, PathForbidden, SourceUnusable, StorageUnavailable, UrlForbidden
from workers.datasets.sources.images import INLINE, HeldAs, RowProblem, SourceEntry, SourceImage, SourceProblem
from workers.datasets.sources.places import Place, PlacedFile
from workers.datasets.sources.rows import Row, is_broken
from workers.datasets.sources.spellings import SeveralFit, find_spelled

IMAGE_COLUMNS = (
    "file_name", "filename", "image", "image_path", "image_name", "img", "img_path", "path", "filepath", "file",
    "url", "image_url", "uri",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "text", "comment", "description", "alt_text", "prompt", "title")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f<>:\"\\|?*%]")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns with the image and, if there is one, its caption."""

    image: str
    caption: str | None


def choose_columns(names: list[str], image: str | None, caption: str | None) -> Columns:
    """Choose the columns that are asked for, or those with well-known names.

    Raises:
        SourceUnusable: there is no such column, or several could be meant.
    """
    for asked, option in ((image, "image_column"), (caption, "caption_column")):
        if asked is not None and asked not in names:
            raise SourceUnusable(f"there is no column {asked!r} among {_list_names(names)}", field=option)
    if image is None:
        found = [name for name in names if name.lower() in IMAGE_COLUMNS]
        if len(found) != 1:
            reason = (
                f"{_list_names(found)} could each name the image" if found else f"none of {_list_names(names)} names it"
            )
            raise SourceUnusable(f"which column is the image? {reason}: set image_column", field="image_column")
        image = found[0]
    if caption is None:
        captions = [name for name in names if name.lower() in CAPTION_COLUMNS]
        caption = min(captions, key=lambda name: CAPTION_COLUMNS.index(name.lower()), default=None)
    return Columns(image, caption)


@dataclass(frozen=True, slots=True)
class Lookup:
    """Turns values of a table into images: `place` is where paths start from, `table` the file with the rows."""

    settings: Settings
    place: Place
    root: str
    """URI of the place; absolute paths must lie below."""
    base: str = ""
    """Folder of the place that relative paths start from."""
    table: str = ""
    image_column: str | None = None
    caption_column: str | None = None
    encoding: str | None = None
    """That of texts, where a person says it."""

    def entries(self, rows: Iterator[Row | SourceProblem]) -> Iterator[SourceEntry]:
        """Yield the images of a table. Consecutive rows that name one image become one, with several captions.

        Raises:
            SourceUnusable: no column names the image.
        """
        first = next(rows, None)
        while isinstance(first, SourceProblem):
            yield first
            first = next(rows, None)
        if first is None:
            return
        columns = choose_columns(list(first.values), self.image_column, self.caption_column)
        held: SourceImage | None = None
        key: object = None
        for row in chain((first,), rows):
            if isinstance(row, SourceProblem):
                yield row
                continue
            value = row.values.get(columns.image)
            entry = self.entry(value, row, columns)
            if held is not None and isinstance(entry, SourceImage) and value == key and isinstance(value, str):
                fresh = tuple(caption for caption in entry.captions if caption not in held.captions)
                if fresh:
                    held = replace(held, captions=held.captions + fresh)
                else:
                    yield SourceProblem(f"{entry.name} ({row.where})", RowProblem.DUPLICATE, "the same image again")
                continue
            if held is not None:
                yield held
            held, key = (entry, value) if isinstance(entry, SourceImage) else (None, None)
            if isinstance(entry, SourceProblem):
                yield entry
        if held is not None:
            yield held

    def entry(self, value: object, row: Row, columns: Columns) -> SourceEntry:
        """Return the image that a row names, or why it names none."""
        found = self.find(value, row, columns.image)
        if isinstance(found, SourceProblem):
            return found
        said = texts(row.values.get(columns.caption) if columns.caption else None)
        custom_id = row.values.get("custom_id")
        used = {columns.image, columns.caption, "custom_id"}
        metadata = {key: value for key, value in row.values.items() if key not in used and value not in (None, INLINE)}
        if any(map(is_broken, said)) or any(isinstance(value, str) and is_broken(value) for value in metadata.values()):
            return SourceProblem(f"{found.name} ({row.where})", RowProblem.ENCODING, row.encoding.explain())
        return SourceImage(
            name=found.name,
            path=found.path,
            held=found.held,
            offset=found.offset,
            length=found.length,
            column=found.column,
            size=found.size,
            version=found.version,
            captions=said,
            custom_id=None if custom_id is None else str(custom_id),
            metadata=metadata,
        )

    def find(self, value: object, row: Row, column: str) -> PlacedFile | SourceProblem:
        """Find the image that a value names: by a path, a URL, a data URL, or the bytes themselves."""
        if isinstance(value, list):
            if len(value) > 1:
                detail = f"the row has {len(value)} images: divide it into rows with one each"
                return SourceProblem(row.where, RowProblem.INVALID, detail)
            return self.find(value[0] if value else None, row, column)
        if value is INLINE:
            value = {"bytes": INLINE}
        if isinstance(value, Mapping):
            name = value.get("path") or value.get("url")
            if value.get("bytes") is None:
                return self.find(name, row, column)
            return PlacedFile(self._cell_name(row, name), self.table, None, HeldAs.CELL, row.offset, row.length, column)
        if not isinstance(value, str) or not value.strip():
            return SourceProblem(row.where, RowProblem.INVALID, "the row names no image")
        if is_data_url(value):
            return PlacedFile(self._cell_name(row, None), self.table, None, HeldAs.CELL, row.offset, row.length, column)
        if value.startswith(("http://", "https://")):
            return self._url(value)
        return self._path(value, row)

    def _url(self, url: str) -> PlacedFile | SourceProblem:
        try:
            parsed = vet_url(url, self.settings)
        except UrlForbidden as error:
            return SourceProblem(url, RowProblem.URL_FORBIDDEN, str(error))
        return PlacedFile(url_name(parsed), url, None, HeldAs.URL)

    def _path(self, value: str, row: Row) -> PlacedFile | SourceProblem:
        value = value.removeprefix("file://")
        path = path_below(value, self.root, self.base)
        if not self.place.near and path is not None:
            return PlacedFile(path, path, None)
        try:
            found = find_spelled(self.place, value, partial(path_below, root=self.root, base=self.base), row.encoding)
            if found is None:
                return SourceProblem(f"{value} ({row.where})", RowProblem.OUTSIDE, f"the path leads out of {self.root}")
            return found
        except PathForbidden as error:
            return SourceProblem(f"{value} ({row.where})", RowProblem.OUTSIDE, str(error))
        except (NotFound, SeveralFit) as error:
            return SourceProblem(f"{value} ({row.where})", RowProblem.NOT_FOUND, str(error))
        except StorageUnavailable as error:
            return SourceProblem(f"{value} ({row.where})", RowProblem.UNREADABLE, str(error))

    def _cell_name(self, row: Row, name: object) -> str:
        custom_id = row.values.get("custom_id")
        return safe_name(str(custom_id or name or f"{row.where.rpartition(' ')[2]:0>9}"))


def path_below(value: str, root: str, base: str = "") -> str | None:
    """The path below `root` that `value` names, absolute or from the folder `base` of it; None if it leads out."""
    if value.startswith(("/", "s3://")):
        if not root:
            return None
        below = root.rstrip("/") + "/"
        if not value.startswith(below):
            return None
        base, value = "", value.removeprefix(below)
    path = posixpath.normpath(posixpath.join(base, value))
    return None if path in (".", "..") or path.startswith(("../", "/")) else path


def safe_name(name: str) -> str:
    """`name` as a relative path that stays below its folder on every system; a digest keeps changed names apart."""
    parts = (_UNSAFE.sub("_", part) for part in name.split("/"))
    safe = "/".join(part for part in parts if part.strip(". ")) or "image"
    return safe if safe == name else _mark(safe, name.encode(errors="surrogatepass"))


def url_name(url: httpx.URL) -> str:
    """Name an image by the host and path of its URL, and a digest of the query where that tells images apart."""
    name = safe_name(f"{url.host}{url.path}")
    return _mark(name, url.query) if url.query else name


def _mark(name: str, difference: bytes) -> str:
    stem, dot, suffix = name.rpartition(".")
    digest = sha256(difference).hexdigest()[:12]
    return f"{stem}-{digest}.{suffix}" if dot and "/" not in suffix else f"{name}-{digest}"


def texts(said: object) -> tuple[str, ...]:
    """Return the captions that a table has in one place: a string or a list of them."""
    found = said if isinstance(said, list | tuple) else (said,)
    return tuple(text.strip() for text in found if isinstance(text, str) and text.strip())


def plain(values: Mapping[str, object]) -> dict[str, object]:
    """Make `values` what JSON and PostgreSQL can hold: no bytes, no NaN, no lone surrogates, no NUL."""
    return {clean(str(key)): _plain(value) for key, value in values.items() if value is not INLINE}


def _plain(value: object) -> object:
    match value:
        case str():
            return clean(value)
        case bool() | int() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return plain(value)
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case bytes():
            return None
    return clean(str(value))


def clean(text: str) -> str:
    """Escape bytes of `text` that are no characters, such as `\\xff`."""
    if text.isascii():
        return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, from an escape in JSON, and no byte of a file name
        raw = text.encode("utf-8", "replace")
    return raw.decode("utf-8", "backslashreplace").replace("\x00", "\N{REPLACEMENT CHARACTER}")


def _list_names(names: list[str]) -> str:
    return ", ".join(map(repr, names[:20])) or "no column"
