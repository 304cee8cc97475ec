"""Parquet → rows. A position is a number of rows: row groups in front of it are not read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from dlconsole.services.manifests.parquet_values import BadText, Values
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
    too_long,
    unique,
)

_BUFFER_BYTES: Final = 1 << 20
"""Read ahead of each column, so that memory does not grow with the row groups."""
_BLOCK_BYTES: Final = 4 << 20
"""Most of a block; more where one row is larger."""
_BATCH_BYTES: Final = 64 << 20
"""Most that the values of a batch may be once its columns' dictionaries are written out."""


class ParquetRows:
    """A list in Parquet, from an open file's descriptor."""

    def __init__(self, descriptor: int, *, max_row_bytes: int) -> None:
        try:
            import pyarrow as pa  # noqa: PLC0415  (an extra, and slow to load)
            import pyarrow.parquet as pq  # noqa: PLC0415
        except ImportError:
            raise Unreadable("is Parquet, which needs: pip install 'dlconsole[parquet]'") from None
        self._pa, self._new_file = pa, pq.ParquetFile
        self._descriptor = descriptor
        self._max_row_bytes = max_row_bytes
        self._values = Values(pa)
        self._packed: Any = None
        self._file = self._open([])
        self._arrow_names: list[str] = self._file.schema_arrow.names
        self._names = unique(self._arrow_names)
        self._header: Header | None = None
        self._at = 0

    def _open(self, read_dictionary: list[str], metadata: Any = None) -> Any:
        try:
            # By the descriptor, not by the name: that may be another file's by now, or nobody's.
            return self._new_file(
                self._pa.OSFile(f"/proc/self/fd/{self._descriptor}"),
                metadata=metadata,
                read_dictionary=read_dictionary,
                buffer_size=_BUFFER_BYTES,
                pre_buffer=False,
            )
        except (self._pa.ArrowException, OSError) as error:
            raise Unreadable(f"is damaged, or no Parquet file ({_first_line(error)})") from error

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
                read = [self._arrow_names[index] for index in wanted] if wanted else self._arrow_names
                batches = self._file_for(number, read, size).iter_batches(
                    batch_size=size,
                    row_groups=[number],
                    columns=read if wanted else None,
                    use_threads=False,
                )
                for batch in batches:
                    if skip >= batch.num_rows:
                        skip -= batch.num_rows
                        if not idle():
                            raise Stopped
                        continue
                    for rows in self._parts(batch.slice(skip), columns or self._names):
                        at += len(rows)
                        self._at = at
                        yield Block([], at, rows=rows)
                    skip = 0
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

    def _file_for(self, group: int, names: list[str], rows: int) -> Any:
        """The file as a row group is best read. Text is usually written out at once, which is fast; where
        a dictionary has texts so long that a batch of them might not fit into memory, it stays a dictionary.
        """
        metadata = self._file.metadata.row_group(group)
        rows = min(rows, metadata.num_rows)
        leaves = [metadata.column(index) for index in range(metadata.num_columns)]
        large = [
            leaf
            for leaf in leaves
            if leaf.physical_type == "BYTE_ARRAY" and leaf.total_uncompressed_size * rows > _BATCH_BYTES
        ]
        paths = [leaf.path_in_schema for leaf in large]
        roots = [name for name in names if any(f"{path}.".startswith(f"{name}.") for path in paths)]
        if not roots:
            return self._file
        if self._packed is None:
            texts = [leaf.path_in_schema for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
            self._packed = self._open(texts, self._file.metadata)
        first = next(
            self._packed.iter_batches(batch_size=1, row_groups=[group], columns=roots, use_threads=False)
        )
        return self._packed if self._values.longest(first) * rows > _BATCH_BYTES else self._file

    def _parts(self, batch: Any, names: list[str] | tuple[str, ...]) -> Iterator[Sequence[Row]]:
        """The rows of a batch, in as many parts as their size makes good; those that are too long are bad."""
        most = self._max_row_bytes
        sizes = self._values.sizes(batch, min(most, _BLOCK_BYTES))
        rows: list[Row] = []
        first = size = 0
        for index, row_bytes in enumerate(sizes):
            if row_bytes > most:
                rows += [*self._rows(batch.slice(first, index - first), names), too_long(most)]
                first = index + 1
            elif size + row_bytes > _BLOCK_BYTES and size:
                yield _joined(rows, self._rows(batch.slice(first, index - first), names))
                rows, first, size = [], index, row_bytes
            else:
                size += row_bytes
        yield _joined(rows, self._rows(batch.slice(first), names))

    def _rows(self, batch: Any, names: list[str] | tuple[str, ...]) -> Sequence[Row]:
        columns, bad = [], False
        for column in batch.columns:
            values, has_bad = self._values.of(column)
            columns.append(values)
            bad = bad or has_bad
        table = Table(names, columns)
        return list(map(_without_bad_text, table)) if bad else table


def _joined(rows: list[Row], more: Sequence[Row]) -> Sequence[Row]:
    return [*rows, *more] if rows else more


def _without_bad_text(row: Row) -> Row:
    if isinstance(row, dict) and any(isinstance(value, BadText) for value in row.values()):
        return BadRow("not UTF-8", row)
    return row


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
