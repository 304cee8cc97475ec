"""A ledger → one row a task, in Parquet, CSV or JSON Lines; or → one line a task, as a ledger again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec

from dlconsole.errors import LedgerError, UsageError
from dlconsole.services.ledger_columns import Column, Table, clean, values_of
from dlconsole.services.ledger_files import Found
from dlconsole.services.ledger_lines import Line, LineReader, Row
from dlconsole.services.ledger_merge import Merger, Reading, Watch, raw_lines
from dlconsole.services.ledger_output import output

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["parquet", "csv", "jsonl"]
FORMATS: Final[dict[Format, tuple[str, ...]]] = {
    "parquet": (".parquet",),
    "csv": (".csv", ".csv.gz", ".csv.zst"),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
}
ROW_GROUP: Final = 65_536
ROW_GROUP_BYTES: Final = 64 << 20
"""A row group ends with whichever is reached first."""
_VARIED: Final = {"key", "url", "final_url", "path", "sha256", "md5", "caption", "id", "hash"}
"""Nearly every row has another value: a dictionary of them would be built in vain."""


@dataclass(slots=True)
class Written:
    """What was written, and what was read for it. `replaced` values had half a character (a lone surrogate),
    which became U+FFFD.
    """

    reading: Reading
    rows: int = 0
    bytes: int = 0
    columns: tuple[Column, ...] = ()
    replaced: int = 0


def format_of(path: Path) -> Format:
    """The format that the file's name says. Raises UsageError."""
    for name, endings in FORMATS.items():
        if path.name.endswith(endings):
            return name
    raise UsageError(f"{path}: its name says no format: end it in .parquet, .csv or .jsonl, or give --to")


def merge(found: Found, path: Path, temp: Path, watch: Watch, *, force: bool = False) -> Written:
    """Write the last line of each task, byte for byte, in the order of the source. Raises LedgerError."""
    with Merger(found, Line, temp, watch) as merger, output(path, force=force) as file:
        written = Written(merger.reading)
        merger.read(raw_lines)
        for lines in merger.kept():
            file.write(b"\n".join([*lines, b""]))
            written.rows += len(lines)
    written.bytes = path.stat().st_size
    return written


def export(
    found: Found,
    path: Path,
    to: Format,
    temp: Path,
    watch: Watch,
    *,
    only: Literal["stored", "failed"] | None = None,
    columns: Sequence[str] = (),
    force: bool = False,
) -> Written:
    """Write one row a task, in the order of the source; `only` those with this outcome, only these `columns`.
    Raises LedgerError, UsageError.
    """
    if to == "parquet":
        require_parquet()
    table = Table(columns)
    reader = LineReader(Row)
    with Merger(found, Row, temp, watch) as merger, output(path, force=force) as file:
        merger.read(raw_lines, table.look)
        chosen = table.columns()
        written = Written(merger.reading, columns=tuple(chosen))
        with closing(_SINKS[to](file, chosen)) as sink:
            for lines in merger.kept():
                rows = reader.again(lines)
                if only:
                    rows = [row for row in rows if row.outcome == only]
                if rows:
                    sink.write(values_of(rows, chosen))
                    written.rows += len(rows)
            sink.finish()
        written.replaced = sink.replaced
    written.bytes = path.stat().st_size
    return written


def require_parquet() -> None:
    """Raises LedgerError where pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: PLC0415, F401  (it takes long, and may be missing)
    except ImportError as error:
        raise LedgerError(
            "writing Parquet needs pyarrow, which is not installed: pip install 'dlconsole[parquet]', "
            "or write --to csv or jsonl"
        ) from error


class _Sink(Protocol):
    """What writes rows in one format."""

    replaced: int

    def write(self, values: list[Sequence[Any]]) -> None:
        """The next rows, by column."""

    def finish(self) -> None:
        """Write what is left."""

    def close(self) -> None:
        """Let go of the file, which stays open; where it is not finished, it need not be whole."""


class _Parquet:
    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        import pyarrow as pa  # noqa: PLC0415  (as above)
        import pyarrow.parquet as pq  # noqa: PLC0415

        self._pa = pa
        types = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_(), "string": pa.string()}
        self._schema = pa.schema([(column.name, types[column.type]) for column in columns])
        self._writer = pq.ParquetWriter(
            file,
            self._schema,
            compression="zstd",
            use_dictionary=[c.name for c in columns if c.name not in _VARIED and c.type == "string"],
        )
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0
        self.replaced = 0

    def write(self, values: list[Sequence[Any]]) -> None:
        arrays = [self._array(one, field.type) for one, field in zip(values, self._schema, strict=True)]
        batch = self._pa.record_batch(arrays, schema=self._schema)
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= ROW_GROUP or self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _array(self, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        try:
            return self._pa.array(values, kind)
        except UnicodeEncodeError:
            cleaned, replaced = _cleaned(values)
            self.replaced += replaced
            return self._pa.array(cleaned, kind)

    def _flush(self) -> None:
        if self._rows:
            table = self._pa.Table.from_batches(self._batches, self._schema)
            self._writer.write_table(table, row_group_size=self._rows)
        self._batches, self._rows, self._bytes = [], 0, 0

    def finish(self) -> None:
        self._flush()
        self._writer.close()

    def close(self) -> None:
        try:  # now: when it is collected, it would write to a file that is closed
            self._writer.close()
        except (OSError, ValueError, self._pa.ArrowException):
            self._writer.is_open = False


class _Csv:
    """As RFC 4180 has it, in UTF-8: lines end in CR LF, so that either character inside a value is quoted.
    Null is nothing between commas.
    """

    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        self._file = file
        self._bools = [column.type == "bool" for column in columns]
        self.replaced = 0
        self._write([[column.name for column in columns]])

    def write(self, values: list[Sequence[Any]]) -> None:
        shown = [
            [None if value is None else "true" if value else "false" for value in one] if is_bool else one
            for one, is_bool in zip(values, self._bools, strict=True)
        ]
        try:
            self._write(zip(*shown, strict=True))
        except UnicodeEncodeError:
            pairs = [_cleaned(one) for one in shown]
            self.replaced += sum(replaced for _, replaced in pairs)
            self._write(zip(*(one for one, _ in pairs), strict=True))

    def _write(self, rows: Any) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\r\n").writerows(rows)
        self._file.write(text.getvalue().encode())

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Jsonl:
    """One flat object a row, with every column in each. Lone surrogates stay, as escapes."""

    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        self._file = file
        self._names = [column.name for column in columns]
        self._encoder = msgspec.json.Encoder()
        self.replaced = 0

    def write(self, values: list[Sequence[Any]]) -> None:
        rows = [dict(zip(self._names, row, strict=True)) for row in zip(*values, strict=True)]
        try:
            self._file.write(self._encoder.encode_lines(rows))
        except UnicodeEncodeError:
            self._file.writelines(json.dumps(row, separators=(",", ":")).encode() + b"\n" for row in rows)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


_SINKS: Final[dict[Format, Callable[[IO[bytes], Sequence[Column]], _Sink]]] = {
    "parquet": _Parquet,
    "csv": _Csv,
    "jsonl": _Jsonl,
}


def _cleaned(values: Sequence[Any]) -> tuple[list[Any], int]:
    """The values as `clean` makes them, and how many that changed."""
    cleaned = [clean(value) if isinstance(value, str) else value for value in values]
    return cleaned, sum(one is not other and one != other for one, other in zip(cleaned, values, strict=True))
