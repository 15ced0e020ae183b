"""Rows of tables: text lists, CSV, JSON lines and Parquet, one after the other and never all in memory."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from tuwen.errors import ConfigurationError, SourceUnusable
from workers.datasets.sources.images import RowProblem, SourceProblem
from workers.datasets.sources.places import Place

if TYPE_CHECKING:
    from pyarrow import parquet

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


def read_rows(place: Place, path: str) -> Iterator[Row | SourceProblem]:
    """Yield the rows of a table, by its suffix: .txt, .csv, .tsv, .jsonl, .ndjson, .parquet."""
    suffix = path.rpartition(".")[2].lower()
    with place.open(path) as file:
        if suffix == "parquet":
            yield from _read_parquet(file, path)
        elif suffix in ("jsonl", "ndjson"):
            yield from _read_json_lines(file, path)
        elif suffix in ("csv", "tsv"):
            yield from _read_csv(file, path)
        else:
            yield from _read_lines(file, path)


def open_parquet(file: BinaryIO, path: str) -> parquet.ParquetFile:
    """Open a table as a `pyarrow.parquet.ParquetFile`.

    Raises:
        SourceUnusable: the file is not a complete Parquet file.
        ConfigurationError: pyarrow is missing.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigurationError("Parquet needs pyarrow: pip install 'tuwen[datasets]'") from error
    try:
        return parquet.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise SourceUnusable(f"{path!r} is not a whole Parquet file") from error


def decode_line(line: bytes) -> str:
    """Decode a line of a list; bytes that are not UTF-8 may still be a file name."""
    return line.decode("utf-8", "surrogateescape")


def _read_lines(file: BinaryIO, path: str) -> Iterator[Row | SourceProblem]:
    for number, (line, _) in enumerate(_read_bounded_lines(file), 1):
        where = f"{path}, line {number}"
        if line is None:
            yield SourceProblem(where, RowProblem.INVALID, "the line is too long")
        elif text := decode_line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip("\r\n"):
            yield Row({"path": text}, where)


def _read_json_lines(file: BinaryIO, path: str) -> Iterator[Row | SourceProblem]:
    for number, (line, offset) in enumerate(_read_bounded_lines(file), 1):
        where = f"{path}, line {number}"
        if line is None:
            yield SourceProblem(where, RowProblem.INVALID, "the line is too long")
        elif not line.strip():
            continue
        elif (values := parse_json_object(line)) is None:
            yield SourceProblem(where, RowProblem.INVALID, "the line is no JSON object")
        else:
            yield Row(values, where, offset, len(line))


def parse_json_object(line: bytes) -> dict[str, Any] | None:
    """Parse a line of JSON; None where it is not an object."""
    try:
        values = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _read_csv(file: BinaryIO, path: str) -> Iterator[Row | SourceProblem]:
    head = decode_line(file.readline(LONGEST_LINE))
    file.seek(0)
    delimiter = max(_DELIMITERS, key=head.count) if any(mark in head for mark in _DELIMITERS) else ","
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    # strict: a quote that is never closed would otherwise swallow the rest of the file as one value
    table = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True)
    columns: list[str] | None = None
    while True:
        try:
            cells = next(table, None)
        except csv.Error as error:
            yield SourceProblem(f"{path}, line {table.line_num}", RowProblem.INVALID, f"not CSV: {error}")
            continue
        if cells is None:
            return
        where = f"{path}, line {table.line_num}"
        if columns is None:
            columns = [cell.strip() for cell in cells]
        elif len(cells) == len(columns):
            yield Row(dict(zip(columns, cells, strict=True)), where)
        elif cells:
            yield SourceProblem(where, RowProblem.INVALID, f"{len(cells)} values under {len(columns)} columns")


def _read_parquet(file: BinaryIO, path: str) -> Iterator[Row | SourceProblem]:
    table = open_parquet(file, path)
    # Leaf by leaf, so that planning does not read the pictures that are in the table.
    leaves = [table.schema.column(number) for number in range(len(table.schema))]
    wanted = [leaf.path for leaf in leaves if leaf.physical_type != "BYTE_ARRAY" or _is_text(leaf)]
    pictures = sorted({leaf.path.partition(".")[0] for leaf in leaves if leaf.path not in wanted})
    number = 0
    for batch in table.iter_batches(batch_size=1000, columns=wanted):
        for values in batch.to_pylist():
            # `Reader` finds the bytes again by the number of the row
            inline = {column: {**(values.get(column) or {}), "bytes": ...} for column in pictures}
            yield Row(values | inline, f"{path}, row {number + 1}", number)
            number += 1


def _is_text(leaf: parquet.ColumnSchema) -> bool:
    return str(leaf.logical_type.type) in ("STRING", "JSON", "ENUM")


def _read_bounded_lines(file: BinaryIO) -> Iterator[tuple[bytes | None, int]]:
    """Yield each line and where it begins; None for a line that is longer than memory should hold."""
    offset = 0
    while line := file.readline(LONGEST_LINE + 1):
        size = len(line)
        whole = size <= LONGEST_LINE
        yield line if whole else None, offset
        while not whole and line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)
            size += len(line)
        offset += size
