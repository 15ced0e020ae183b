"""Rows of Parquet files, without reading the pictures that are in them: `Reader` finds those again by their row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from tuwen.errors import ConfigurationError, SourceUnusable
from workers.datasets.sources.encodings import is_utf_8
from workers.datasets.sources.images import INLINE

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import parquet

_ROWS = 1000
_PEEKED = 8192
"""Bytes of a value by which it is judged."""


@dataclass(frozen=True, slots=True)
class _Column:
    """A column, and the leaves of it that are read while the file is listed."""

    name: str
    kind: pa.DataType
    leaves: tuple[str, ...]
    held: bool
    """Whether it has binary leaves, which stay where they are."""
    text: bool = False
    """Whether it is binary and holds text."""


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


def read_values(file: BinaryIO, path: str) -> Iterator[dict[str, Any]]:
    """Yield the values of each row. In the place of binary ones is `INLINE`: alone, or below `bytes` beside the path.

    A list or map of pictures becomes a list of such values.

    Raises:
        SourceUnusable: the file is not a complete Parquet file.
        ConfigurationError: pyarrow is missing.
    """
    table = open_parquet(file, path)
    columns = list(_columns(table))
    wanted = [leaf for column in columns for leaf in column.leaves]
    held = [column for column in columns if column.held]
    texts = [column.name for column in columns if column.text]
    for batch in table.iter_batches(batch_size=_ROWS, columns=wanted):
        for values in batch.to_pylist():
            for column in held:
                values[column.name] = _hold(values[column.name], column.kind) if column.leaves else INLINE
            for name in texts:
                values[name] = _decode(values[name])
            yield values


def picture_of(value: object) -> object:
    """The picture in a value of a column: the bytes, or the first ones in a struct, list or map."""
    if isinstance(value, Mapping):
        return value.get("bytes")
    if isinstance(value, list) and value:
        first = value[0]
        return picture_of(first[1] if isinstance(first, tuple) else first)
    return value


def _columns(table: parquet.ParquetFile) -> Iterator[_Column]:
    """The columns of a table. Leaves are assigned to them in order, since names may have dots in them."""
    at = 0
    for field in table.schema_arrow:
        leaves = [table.schema.column(number) for number in range(at, at + _count_leaves(field.type))]
        at += len(leaves)
        binary = [leaf for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and not _is_text(leaf)]
        text = len(leaves) == 1 and bool(binary) and _holds_text(table, field.name)
        wanted = [leaf.path for leaf in leaves if leaf not in binary or text]
        yield _Column(field.name, field.type, tuple(wanted), bool(binary) and not text, text)


def _count_leaves(kind: pa.DataType) -> int:
    return sum(_count_leaves(kind.field(number).type) for number in range(kind.num_fields)) or 1


def _is_text(leaf: parquet.ColumnSchema) -> bool:
    return str(leaf.logical_type.type) in ("STRING", "JSON", "ENUM")


def _holds_text(table: parquet.ParquetFile, column: str) -> bool:
    """Whether the first value of a binary column is text: old writers do not say which ones are."""
    for batch in table.iter_batches(batch_size=1, columns=[column]):
        value = batch.column(0)[0].as_py()
        if value is not None:
            return b"\0" not in value[:_PEEKED] and len(value) <= _PEEKED and is_utf_8(value)
    return False


def _hold(value: Any, kind: pa.DataType) -> object:
    """What stands for a value whose binary leaves were not read."""
    from pyarrow import types

    if types.is_map(kind):
        return [{"path": item.get("key"), "bytes": INLINE} for item in value or ()]
    if types.is_list(kind) or types.is_large_list(kind):
        return [_hold(inner, kind.value_type) for inner in value or ()]
    if types.is_struct(kind):
        return value | {"bytes": INLINE} if value is not None else None
    return INLINE


def _decode(value: object) -> object:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
