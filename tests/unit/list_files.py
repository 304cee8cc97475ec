"""Rows → lists in every format, and lists → rows, for the tests."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

from dlconsole.services.manifests import BadRow, Block, Limits, Reading, Row, open_list

Rows = list[dict[str, str]]
NAMES = ("url", "caption", "note")


def encoded(rows: Rows, kind: str, *, newline: str = "\n", bom: bool = False) -> bytes:
    """A list of these rows, which have the columns NAMES, in one of the formats of text."""
    out = io.StringIO()
    if kind == "txt":
        out.write("".join(row["url"] + newline for row in rows))
    elif kind in {"csv", "tsv-quoted"}:
        # Python's writer leaves a carriage return bare at a line's end, where it is the line's end.
        quoting = csv.QUOTE_ALL if any("\r" in "".join(row.values()) for row in rows) else csv.QUOTE_MINIMAL
        delimiter = "," if kind == "csv" else "\t"
        writer = csv.writer(out, delimiter=delimiter, lineterminator=newline, quoting=quoting)
        writer.writerow(NAMES)
        writer.writerows([[row[name] for name in NAMES] for row in rows])
    elif kind == "tsv":
        out.write("\t".join(NAMES) + newline)
        out.write("".join("\t".join(row[name] for name in NAMES) + newline for row in rows))
    elif kind == "jsonl":
        out.write("".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + newline for row in rows))
    elif kind == "json array":
        out.write(json.dumps(rows, ensure_ascii=False, indent=len(rows) % 3 or None))
    else:
        out.write(newline.join(json.dumps(row, ensure_ascii=False) for row in rows))
    return b"\xef\xbb\xbf" * bom + out.getvalue().encode()


def packed(data: bytes, packing: str) -> bytes:
    """As `gzip` and `zstd` pack it, in two members or frames."""
    half = len(data) // 2
    if packing == "gz":
        return gzip.compress(data[:half], 1) + gzip.compress(data[half:], 1)
    if packing == "zst":
        import zstandard

        compressor = zstandard.ZstdCompressor()
        return compressor.compress(data[:half]) + compressor.compress(data[half:])
    return data


def write_parquet(path: Path, columns: dict[str, Any], *, row_group: int = 3) -> Path:
    """A Parquet file of these columns, whose values are lists or Arrow arrays."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=row_group)
    return path


def by_column(rows: Rows) -> dict[str, list[str]]:
    return {name: [row[name] for row in rows] for name in NAMES}


def blocks_of(
    path: Path, *, at: int = 0, rows: int = 2, row_bytes: int = 1 << 20, reading: Reading | None = None
) -> list[Block]:
    limits = Limits(rows, 8192, row_bytes)
    with open_list(path, limits, reading) as source:
        return list(source.blocks(at=at))


def rows_of(blocks: list[Block]) -> list[Any]:
    """Good rows as they are, bad ones as why, blank ones as None; of plain text the lines."""
    rows: list[Any] = []
    for block in blocks:
        rows += block.lines + [_shown(row) for row in block.rows] + ["too long"] * block.too_long
    return rows


def _shown(row: Row) -> Any:
    return row.why if isinstance(row, BadRow) else row
