"""Rows of tables: text lists, CSV, JSON lines and Parquet, one after the other and never all in memory."""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from workers.datasets.sources.encodings import HEAD, UTF_8, Encoding, detect_file, detect_head
from workers.datasets.sources.images import RowProblem, SourceProblem
from workers.datasets.sources.parquet import read_values
from workers.datasets.sources.places import Place

LONGEST_LINE = 64 * 2**20
"""Bytes; a row may hold an image as base64."""
_DELIMITERS = ",\t;|"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table, and where it is."""

    values: Mapping[str, Any]
    where: str
    """The row's place, for messages: `list.csv, line 7`."""
    offset: int = 0
    """The position from which to read this row again: its first byte in JSON lines, its number in Parquet."""
    length: int | None = None
    encoding: Encoding = UTF_8
    """What the table is written in."""


def read_rows(place: Place, path: str, encoding: str | None = None) -> Iterator[Row | SourceProblem]:
    """Yield the rows of a table, by its suffix: .txt, .csv, .tsv, .jsonl, .ndjson, .parquet.

    Args:
        encoding: that of a text, where a person says it; otherwise it is detected.
    """
    suffix = path.rpartition(".")[2].lower()
    with place.open(path) as file:
        if suffix == "parquet":
            for number, values in enumerate(read_values(file, path)):
                yield Row(values, f"{path}, row {number + 1}", number)
            return
        found = detect_file(file, encoding)
        if suffix in ("jsonl", "ndjson"):
            yield from _read_json_lines(file, path, found)
        elif suffix in ("csv", "tsv"):
            yield from _read_csv(file, path, found)
        else:
            yield from _read_lines(file, path, found)


def is_broken(text: str) -> bool:
    """Whether the text has bytes that could not be decoded: file names may have them, words may not."""
    return not text.isascii() and any("\udc80" <= char <= "\udcff" for char in text)


def _read_lines(file: BinaryIO, path: str, encoding: Encoding) -> Iterator[Row | SourceProblem]:
    for line in _read_bounded_lines(file, encoding):
        where = f"{path}, line {line.number}"
        if line.text is None:
            yield SourceProblem(where, RowProblem.INVALID, "the line is too long")
        elif text := line.text.rstrip("\r\n"):
            yield Row({"path": text}, where, encoding=encoding)


def _read_json_lines(file: BinaryIO, path: str, encoding: Encoding) -> Iterator[Row | SourceProblem]:
    for line in _read_bounded_lines(file, encoding):
        where = f"{path}, line {line.number}"
        if line.text is None:
            yield SourceProblem(where, RowProblem.INVALID, "the line is too long")
        elif not line.text.strip():
            continue
        elif (values := parse_json_object(line.text)) is not None:
            yield Row(values, where, line.offset, line.length, encoding)
        elif is_broken(line.text):
            yield SourceProblem(where, RowProblem.ENCODING, encoding.explain())
        else:
            yield SourceProblem(where, RowProblem.INVALID, "the line is no JSON object")


def parse_json_object(line: str | bytes) -> dict[str, Any] | None:
    """Parse a line of JSON; None where it is not an object."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def parse_any_object(line: bytes) -> dict[str, Any] | None:
    """Parse a line of JSON whose encoding is not known, for what is ASCII in it; None where it is no object in any."""
    return next((values for text in _readings(line) if (values := parse_json_object(text)) is not None), None)


def _readings(line: bytes) -> Iterator[str | bytes]:
    yield line  # UTF-8 and UTF-16
    for encoding in ("gb18030", "big5", "cp932", "latin-1"):
        yield line.decode(encoding, "replace")


def parse_first_object(place: Place, path: str, encoding: str | None) -> dict[str, Any]:
    """The object of the first line of JSON lines, for what is ASCII in it; empty where that is none.

    Sources are opened in every worker, so no more of the file is read.
    """
    with place.open(path) as file:
        found = detect_head(file.read(HEAD), encoding)
        file.seek(len(found.mark) if found is not None else 0)
        if found is None:
            return parse_any_object(file.readline(LONGEST_LINE)) or {}
        line = next(_read_bounded_lines(file, found), None)
    return (parse_json_object(line.text) if line is not None and line.text is not None else None) or {}


def _read_csv(file: BinaryIO, path: str, encoding: Encoding) -> Iterator[Row | SourceProblem]:
    lines = _Lines(_open_text(file, encoding))
    head = lines.peek()
    delimiter = max(_DELIMITERS, key=head.count) if any(mark in head for mark in _DELIMITERS) else ","
    columns: list[str] | None = None
    while not lines.ended:
        # A reader for each row, so that a quote that is never closed costs its own line and not those that it swallows.
        first = lines.begin_row()
        where = f"{path}, line {first}"
        try:
            # strict: otherwise the rest of the file would be one value
            cells = next(csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True), None)
        except csv.Error as error:
            lines.take_back()
            yield SourceProblem(where, RowProblem.INVALID, f"not CSV: {error}")
            continue
        if not cells:
            continue
        if columns is None:
            columns = [cell.strip() for cell in cells]
        elif len(cells) == len(columns):
            yield Row(dict(zip(columns, cells, strict=True)), where, encoding=encoding)
        else:
            lines.take_back()
            yield SourceProblem(where, RowProblem.INVALID, f"{len(cells)} values under {len(columns)} columns")


class _Lines:
    """Lines of a text, of which those of a row can be taken back, but for its first one."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._text = text
        self._ahead: deque[str] = deque()
        self._row: list[str] = []
        self._number = 0
        """Lines before `_ahead`."""

    @property
    def ended(self) -> bool:
        return not self.peek()

    def peek(self) -> str:
        """The next line, which is not consumed; empty at the end."""
        if not self._ahead and (line := self._text.readline(LONGEST_LINE)):
            self._ahead.append(line)
        return self._ahead[0] if self._ahead else ""

    def begin_row(self) -> int:
        """Remember the lines from here on. Returns the number of the next line, from 1."""
        self._row.clear()
        return self._number + 1

    def take_back(self) -> None:
        """Make all lines of the row but the first one the next ones again."""
        back = self._row[1:]
        self._ahead.extendleft(reversed(back))
        self._number -= len(back)
        self._row.clear()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.peek()
        if not line:
            raise StopIteration
        self._ahead.popleft()
        self._number += 1
        self._row.append(line)
        return line


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a text file, and where its bytes are."""

    text: str | None
    """None where it is longer than memory should hold. Bytes that cannot be decoded are lone surrogates."""
    number: int
    offset: int
    length: int


def _read_bounded_lines(file: BinaryIO, encoding: Encoding) -> Iterator[_Line]:
    """Yield each line with its end, from where the file is."""
    if encoding.wide:
        yield from _read_wide_lines(file, encoding)
        return
    offset = file.tell()
    number = 0
    while raw := file.readline(LONGEST_LINE + 1):
        number += 1
        size = len(raw)
        whole = size <= LONGEST_LINE
        text = raw.decode(encoding.name or "ascii", "surrogateescape") if whole else None
        while not whole and raw and not raw.endswith(b"\n"):
            raw = file.readline(LONGEST_LINE)
            size += len(raw)
        yield _Line(text, number, offset, size)
        offset += size


def _read_wide_lines(file: BinaryIO, encoding: Encoding) -> Iterator[_Line]:
    """Yield the lines of UTF-16, in which the byte of a line feed may be half of another character."""
    offset = file.tell()
    text = _open_text(file, encoding)
    for number, line in enumerate(iter(lambda: text.readline(LONGEST_LINE), ""), 1):
        size = len(line.encode(encoding.name or "utf-16-le", "surrogatepass"))
        yield _Line(line, number, offset, size)
        offset += size


def _open_text(file: BinaryIO, encoding: Encoding) -> io.TextIOWrapper:
    """Open the rest of a file as text whose line ends are as they are."""
    # UTF-16 has no bytes that surrogateescape could keep; its only broken ones are the last.
    errors = "replace" if encoding.wide else "surrogateescape"
    return io.TextIOWrapper(file, encoding=encoding.name or "ascii", errors=errors, newline="")
