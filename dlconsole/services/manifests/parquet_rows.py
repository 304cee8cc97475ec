"""Parquet → rows. A position is a number of rows: row groups in front of it are not read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from dlconsole.services.manifests.rows import (
    SAMPLE_ROWS,
    BadRow,
    Block,
    Header,
    Idle,
    Row,
    Stopped,
    Table,
    Unreadable,
    unique,
)

_BUFFER_BYTES: Final = 1 << 20
"""Read ahead of each column, so that memory does not grow with the row groups."""
_BLOCK_BYTES: Final = 4 << 20
"""Most of a block, by the average of its row group; more where one row is larger."""


class ParquetRows:
    """A list in Parquet, from an open file's descriptor."""

    def __init__(self, descriptor: int) -> None:
        try:
            import pyarrow as pa  # noqa: PLC0415  (an extra, and slow to load)
            import pyarrow.parquet as pq  # noqa: PLC0415
        except ImportError:
            raise Unreadable("is Parquet, which needs: pip install 'dlconsole[parquet]'") from None
        self._pa = pa
        try:
            # By the descriptor, not by the name: that may be another file's by now, or nobody's.
            file = pa.OSFile(f"/proc/self/fd/{descriptor}")
            self._file: Any = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise Unreadable(f"is damaged, or no Parquet file ({_first_line(error)})") from error
        self._arrow_names: list[str] = self._file.schema_arrow.names
        self._names = unique(self._arrow_names)
        self._header: Header | None = None
        self._at = 0

    @property
    def share_read(self) -> float:
        """How much of it lies in front of the last block, from 0 to 1."""
        rows: int = self._file.metadata.num_rows
        return self._at / max(1, rows)

    def header(self, idle: Idle) -> Header:
        """See RowReader."""
        if self._header is None:
            block = next(self.blocks(0, SAMPLE_ROWS, idle, None), Block([], 0))
            self._at = 0
            self._header = Header(self._names, [dict(row) for row in block.rows if isinstance(row, dict)])
        return self._header

    def blocks(self, at: int, most: int, idle: Idle, names: frozenset[str] | None) -> Iterator[Block]:
        """See RowReader."""
        group, begins = self._group_of(at)
        columns = self._columns(names)
        wanted = [self._names.index(name) for name in columns] if columns else None
        skip = at - begins
        try:
            for number in range(group, self._file.metadata.num_row_groups):
                size = self._batch_rows(number, most)
                batches = self._file.iter_batches(
                    batch_size=size,
                    row_groups=[number],
                    columns=[self._arrow_names[index] for index in wanted] if wanted else None,
                    use_threads=False,
                )
                for batch in batches:
                    if skip >= batch.num_rows:
                        skip -= batch.num_rows
                        if not idle():
                            raise Stopped
                        continue
                    rows = self._rows(batch.slice(skip), columns or self._names)
                    skip = 0
                    at += len(rows)
                    self._at = at
                    yield Block([], at, rows=rows)
        except (self._pa.ArrowException, OSError) as error:
            raise Unreadable(f"is damaged behind its row {at:,} ({_first_line(error)})") from error

    def _group_of(self, row: int) -> tuple[int, int]:
        """The row group that a row is in, and the first row of that."""
        begins, metadata = 0, self._file.metadata
        for number in range(metadata.num_row_groups):
            rows = metadata.row_group(number).num_rows
            if begins + rows > row:
                return number, begins
            begins += rows
        return metadata.num_row_groups, begins

    def _columns(self, names: frozenset[str] | None) -> list[str]:
        """Those to read, in their order; none for all, also where names alone would not tell them apart."""
        if names is None or len(set(self._arrow_names)) < len(self._arrow_names):
            return []
        return [name for name in self._names if name in names]

    def _batch_rows(self, group: int, most: int) -> int:
        metadata = self._file.metadata.row_group(group)
        row_bytes: int = metadata.total_byte_size // max(1, metadata.num_rows)
        return max(1, min(most, _BLOCK_BYTES // max(1, row_bytes)))

    def _rows(self, batch: Any, names: list[str] | tuple[str, ...]) -> Sequence[Row]:
        columns, bad = [], False
        for column, name in zip(batch.columns, names, strict=True):
            values, has_bad = self._values(column, name)
            columns.append(values)
            bad = bad or has_bad
        table = Table(names, columns)
        return list(map(_without_bad_text, table)) if bad else table

    def _values(self, column: Any, name: str) -> tuple[list[Any], bool]:
        """A column as Python's values, and whether one of them is a `_BadText`."""
        types = self._pa.types
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if getattr(column.type, "unit", "") == "ns":  # more than Python's own types can hold
            values = column.cast(self._pa.string()).to_pylist()
            return [value and value.replace(" ", "T") for value in values], False
        try:
            return column.to_pylist(), False
        except UnicodeDecodeError:
            if not (types.is_string(column.type) or types.is_large_string(column.type)):
                raise self._strange(column, name) from None
            return list(map(_decoded, column.cast(self._pa.large_binary()).to_pylist())), True
        except (ValueError, TypeError, self._pa.ArrowException):
            raise self._strange(column, name) from None

    def _strange(self, column: Any, name: str) -> Unreadable:
        return Unreadable(f"has a column {name!r} of type {column.type} that cannot be read: --keep others")


class _BadText(str):
    """What a column of text holds that is not UTF-8."""

    __slots__ = ()


def _decoded(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return _BadText(value.decode("utf-8", "backslashreplace"))


def _without_bad_text(row: Row) -> Row:
    if isinstance(row, dict) and any(isinstance(value, _BadText) for value in row.values()):
        return BadRow("not UTF-8", row)
    return row


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
