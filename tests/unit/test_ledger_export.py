"""The table that a ledger becomes: read back, it is the source, in each format."""

from __future__ import annotations

import csv
import gc
import gzip
import io
import json
import math
import resource
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings, strategies as st
from ledger_support import LIST, ledger, line

from dlconsole.errors import LedgerError, UsageError
from dlconsole.services import ledger_export
from dlconsole.services.ledger_columns import OWN, ROLES, Seen, Table, clean
from dlconsole.services.ledger_export import Written, export, format_of, merge
from dlconsole.services.ledger_files import find, of_files
from dlconsole.services.ledger_lines import LineReader, Row
from dlconsole.services.ledger_merge import Watch

Write = Callable[..., Written]
FORMATS = ("parquet", "csv", "jsonl")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Export the ledger of these files."""

    def export_lines(name: str, *lines: bytes, **more: Any) -> Written:
        store = ledger(tmp_path, {"a.jsonl": lines})
        path = tmp_path / name
        return export(find([store], "pets"), path, format_of(path), tmp_path, Watch(), force=True, **more)

    return export_lines


def read(path: Path) -> list[dict[str, Any]]:
    """The rows; of CSV all values are text, '' for null."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    return [json.loads(one) for one in path.read_bytes().split(b"\n")[:-1]]


# -- values -----------------------------------------------------------------------------------------

CAPTIONS = [
    'a "quoted", comma',
    "two\nlines\r\nand a \r alone",
    "only a \r alone",
    "naïve café 猫 😀",
    "nul \0 inside",
    "",
    " spaces ",
    "\ufeffbom \u2028",
    "'; DROP TABLE tasks",
    "=1+1",
]


@pytest.mark.parametrize("to", FORMATS)
def test_captions_come_back_byte_for_byte(write: Write, tmp_path: Path, to: str) -> None:
    lines = [line(f"{LIST}-{row}", caption=text) for row, text in enumerate(CAPTIONS, 1)]
    assert write(f"o.{to}", *reversed(lines)).rows == len(CAPTIONS)
    assert [row["caption"] for row in read(tmp_path / f"o.{to}")] == CAPTIONS


@pytest.mark.parametrize(
    ("to", "half", "replaced"), [("parquet", "\ufffd", 2), ("csv", "\ufffd", 2), ("jsonl", "\ud83d", 0)]
)
def test_half_a_character_breaks_no_export(
    write: Write, tmp_path: Path, to: str, half: str, replaced: int
) -> None:
    """UTF-8 has no bytes for it: in JSON Lines it stays an escape, elsewhere it is U+FFFD, and counted."""
    lines = [line(f"{LIST}-1", caption="whole 😀")]
    lines.append(line(f"{LIST}-2")[:-1] + b',"caption":"half \\ud83d","columns":{"x\\udc00":"\\ud83d"}}')
    written = write(f"o.{to}", *lines)
    rows = read(tmp_path / f"o.{to}")
    assert [row["caption"] for row in rows] == ["whole 😀", f"half {half}"]
    assert rows[1]["x\ufffd"] == half
    assert written.replaced == replaced


@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        ([1, None, -(2**63)], "int64", [1, None, -(2**63)]),
        ([2**63 - 1, 0], "int64", [2**63 - 1, 0]),
        ([2**63, 1], "string", ["9223372036854775808", "1"]),
        ([10**30, 0.5], "string", ["1" + "0" * 30, "0.5"]),
        ([0.5, None, 2], "float64", [0.5, None, 2.0]),
        ([2**53 + 2, 0.5], "float64", [float(2**53 + 2), 0.5]),
        ([2**53 + 1, 0.5], "string", ["9007199254740993", "0.5"]),
        ([math.nan, 0.5, math.inf], "float64", [None, 0.5, None]),
        ([math.nan, 1], "float64", [None, 1.0]),
        ([math.nan, "x"], "string", [None, "x"]),
        ([True, None], "bool", [True, None]),
        ([True, 1], "string", ["true", "1"]),
        (["a", 1, 1.5, False, None], "string", ["a", "1", "1.5", "false", None]),
        ([{"a": [1, "é"]}, [None], "[]"], "string", ['{"a":[1,"é"]}', "[null]", "[]"]),
        ([{"a": 10**30, "b": math.nan}], "string", ['{"a":' + "1" + "0" * 30 + ',"b":null}']),
        ([None, None], "string", [None, None]),
    ],
)
def test_the_type_of_a_kept_column_is_the_narrowest_that_holds_all(
    write: Write, tmp_path: Path, values: list[Any], kind: str, shown: list[Any]
) -> None:
    lines = [line(f"{LIST}-{row}", columns={"x": value}) for row, value in enumerate(values, 1)]
    for to in ("parquet", "jsonl"):
        written = write(f"o.{to}", *lines)
        assert [column.type for column in written.columns if column.name == "x"] == [kind]
        assert [row["x"] for row in read(tmp_path / f"o.{to}")] == shown
    assert (
        pq.read_schema(tmp_path / "o.parquet").field("x").type
        == {
            "int64": pa.int64(),
            "float64": pa.float64(),
            "bool": pa.bool_(),
            "string": pa.string(),
        }[kind]
    )
    write("o.csv", *lines)
    words = {True: "true", False: "false", None: ""}
    assert [row["x"] for row in read(tmp_path / "o.csv")] == [
        words[value] if value is None or isinstance(value, bool) else str(value) for value in shown
    ]


JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text('a"\n\0é😀\ud800,', max_size=4),
    st.lists(st.integers(0, 3), max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(JSON_VALUES, min_size=1, max_size=6))
def test_no_value_is_changed_by_the_type_that_was_found(values: list[Any]) -> None:
    """Numbers stay equal, text stays text; all others are read back from their JSON."""
    text = b"".join(
        json.dumps({"key": "k", "outcome": "stored", "url": "u", "columns": {"x": v}}).encode() + b"\n"
        for v in values
    )
    _, rows = LineReader(Row).read(text)
    table = Table()
    table.look(rows)
    column = table.columns()[-1]
    (shown,) = ledger_export.values_of(rows, [column])
    for value, found in zip(values, shown, strict=True):
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            assert found is None
        elif column.type != "string" or isinstance(value, str):
            assert found == value
            assert type(found) in {str, {"int64": int, "float64": float, "bool": bool}.get(column.type)}
        else:
            assert json.loads(found) == value


@given(st.text("a\ud83d\ude00\ud800é", max_size=6))
def test_cleaned_text_is_utf8_and_as_long_but_for_pairs(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.encode().decode() == cleaned
    assert cleaned == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def test_what_a_line_does_not_say_is_null(write: Write, tmp_path: Path) -> None:
    write("o.parquet", line(outcome="failed", kind="dns", path="/pets/a.jpg"))
    (row,) = read(tmp_path / "o.parquet")
    nulls = {name for name, value in row.items() if value is None}
    said = {"key", "outcome", "url", "path", "kind", "bytes", "attempts"}
    assert nulls == {*OWN, *ROLES} - said
    assert (row["bytes"], row["attempts"], row["kind"]) == (0, 1, "dns")


# -- columns ----------------------------------------------------------------------------------------


def test_columns_are_the_lines_own_then_the_kept_ones_as_they_came(write: Write, tmp_path: Path) -> None:
    lines = [
        line(f"{LIST}-1", columns={"b": 1, "a": 2}),
        line(f"{LIST}-2", columns={"c": 3, "a": 4}),
        line(f"{LIST}-3"),
    ]
    write("o.parquet", *lines)
    assert pq.read_schema(tmp_path / "o.parquet").names == [*OWN, *ROLES, "b", "a", "c"]
    rows = read(tmp_path / "o.parquet")
    assert [(row["b"], row["a"], row["c"]) for row in rows] == [
        (1, 2, None),
        (None, 4, 3),
        (None, None, None),
    ]


def test_a_kept_column_with_one_of_our_names_is_the_sources(write: Write, tmp_path: Path) -> None:
    kept = {"url": 1, "source_url": 2, "caption": 3, "columns": 4}
    write("o.jsonl", line(url="ours", caption="role", columns=kept))
    (row,) = read(tmp_path / "o.jsonl")
    found = {
        name: row[name]
        for name in ("url", "source_source_url", "source_url", "caption", "source_caption", "columns")
    }
    assert found == {
        "url": "ours",
        "source_source_url": 1,
        "source_url": 2,
        "caption": "role",
        "source_caption": 3,
        "columns": 4,
    }


def test_kept_columns_whose_names_become_the_same_stay_two() -> None:
    text = line()[:-1] + b',"columns":{"\\ud800":1,"\\ud801":2}}\n'
    _, rows = LineReader(Row).read(text)
    table = Table()
    table.look(rows)
    assert [column.name for column in table.columns()[-2:]] == ["\ufffd", "source_\ufffd"]


@pytest.mark.parametrize("to", FORMATS)
def test_only_some_columns_in_the_order_that_was_asked_for(write: Write, tmp_path: Path, to: str) -> None:
    names = ["source_url", "caption", "key"]
    write(f"o.{to}", line(caption="a", columns={"url": "b", "z": 1}), columns=names)
    (row,) = read(tmp_path / f"o.{to}")
    assert list(row.items()) == [("source_url", "b"), ("caption", "a"), ("key", f"{LIST}-1")]


def test_a_column_that_there_is_not_is_said_with_those_that_there_are(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such column: captoin \(columns: key, .*, caption, id, hash\)"):
        write("o.csv", line(), columns=["captoin"])
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_names_that_are_values_do_not_fill_the_memory(write: Write, tmp_path: Path) -> None:
    lines = [line(f"{LIST}-{row}", columns={f"c{row}": row}) for row in range(1, 1002)]
    with pytest.raises(LedgerError, match=r"more than 1000 kept columns, .*: --columns names those"):
        write("o.csv", *lines)
    write("o.jsonl", *lines, columns=["c1001"])
    assert read(tmp_path / "o.jsonl")[-1] == {"c1001": 1001}


def test_whole_numbers_are_looked_at_over_the_whole_ledger() -> None:
    """A block without whole numbers between two that have some, and a rounded one in the first."""
    seen = Seen()
    for values in ([2**53 + 1], [0.5, None], [3]):
        seen.look(values)
    assert seen.type == "string"


# -- files ------------------------------------------------------------------------------------------


def test_one_row_a_task_in_the_order_of_the_source(write: Write, tmp_path: Path) -> None:
    lines = [line(f"{LIST}-{row}", ended_ms=row) for row in (10, 9, 2, 1)]
    lines.append(line(f"{LIST}-9", outcome="failed", ended_ms=99))
    written = write("o.csv", *lines)
    assert [(row["key"], row["outcome"]) for row in read(tmp_path / "o.csv")] == [
        (f"{LIST}-{row}", "failed" if row == 9 else "stored") for row in (1, 2, 9, 10)
    ]
    assert (written.rows, written.reading.superseded) == (4, 1)
    assert write("o.csv", *lines, only="failed").rows == 1
    assert write("o.csv", *lines, only="stored").rows == 3


def test_row_groups_are_bounded_in_rows_and_in_bytes(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line(f"{LIST}-{row}", caption="x" * 100) for row in range(1, 5001)]

    def groups() -> int:
        write("o.parquet", *lines)
        return pq.ParquetFile(tmp_path / "o.parquet").num_row_groups

    assert groups() == 1
    with monkeypatch.context() as patch:
        patch.setattr(ledger_export, "ROW_GROUP", 4096)
        assert groups() == 2
    monkeypatch.setattr(ledger_export, "ROW_GROUP_BYTES", 1000)
    assert groups() > 2
    assert pq.ParquetFile(tmp_path / "o.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    assert [row["key"] for row in read(tmp_path / "o.parquet")] == [f"{LIST}-{row}" for row in range(1, 5001)]


@pytest.mark.parametrize("name", ["o.csv.gz", "o.jsonl.gz", "o.csv.zst", "o.jsonl.zst"])
def test_text_can_be_compressed_and_the_same_ledger_makes_the_same_bytes(
    write: Write, tmp_path: Path, name: str
) -> None:
    written = write(name, line(caption="a cat"))
    first = (tmp_path / name).read_bytes()
    assert written.bytes == len(first)
    assert not name.endswith(".gz") or first[3:8] == b"\0" * 5  # no name, no time
    text = (
        gzip.decompress(first)
        if name.endswith(".gz")
        else zstandard.ZstdDecompressor().stream_reader(first).read()
    )
    write(name.rpartition(".")[0], line(caption="a cat"))
    assert text == (tmp_path / name.rpartition(".")[0]).read_bytes()
    write(name, line(caption="a cat"))
    assert (tmp_path / name).read_bytes() == first


def test_an_empty_ledger_is_a_table_without_rows(write: Write, tmp_path: Path) -> None:
    for to in FORMATS:
        assert write(f"o.{to}").rows == 0
        assert read(tmp_path / f"o.{to}") == []
    assert pq.read_schema(tmp_path / "o.parquet").names == [*OWN, *ROLES]


@pytest.mark.parametrize("name", ["m.jsonl", "m.jsonl.gz", "m.jsonl.zst"])
def test_a_merged_ledger_is_a_ledger_with_one_line_a_task_byte_for_byte(tmp_path: Path, name: str) -> None:
    odd = b'{"key":"' + f"{LIST}-2".encode() + b'", "outcome":"stored",\t"url":"u","ended_ms":7,"later":1}'
    store = ledger(
        tmp_path, {"a.jsonl": [line(f"{LIST}-3"), line(f"{LIST}-2", ended_ms=6)], "b.jsonl": [odd]}
    )
    merge(find([store], "pets"), tmp_path / name, tmp_path, Watch())
    text = ledger_files_text(tmp_path / name)
    assert text == odd + b"\n" + line(f"{LIST}-3") + b"\n"
    merge(of_files([tmp_path / name]), tmp_path / "again.jsonl", tmp_path, Watch())
    assert (tmp_path / "again.jsonl").read_bytes() == text


def ledger_files_text(path: Path) -> bytes:
    (file,) = of_files([path]).files
    return b"".join(block.text for block in file.blocks())


@pytest.mark.parametrize("to", [*FORMATS, "csv.gz", "jsonl.zst"])
def test_nothing_is_left_of_an_export_that_ends_early(write: Write, tmp_path: Path, to: str) -> None:
    (tmp_path / f"o.{to}").write_text("old")
    watch = Watch()

    def stop(phase: str, done: int, *_: int) -> None:
        if phase == "writing" and done > 4096:
            watch.stop.set()

    watch.tell = stop
    path = tmp_path / f"o.{to}"
    store = ledger(tmp_path, {"a.jsonl": [line(f"{LIST}-{row}") for row in range(1, 13_000)]})
    with pytest.raises(KeyboardInterrupt):
        export(find([store], "pets"), path, format_of(path), tmp_path, watch, force=True)
    gc.collect()  # what is not closed in order would complain here
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"o.{to}", "pets"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("to", [*FORMATS, "csv.gz", "jsonl.zst"])
def test_a_disk_that_fills_up_leaves_nothing_and_says_so(write: Write, tmp_path: Path, to: str) -> None:
    """A limit on the size of files stands for it: past it, writing fails as on a full disk."""
    lines = [line(f"{LIST}-{row}", sha256=secrets.token_hex(40)) for row in range(1, 9000)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ledger(tmp_path, {"a.jsonl": lines})
    path = tmp_path / f"o.{to}"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(LedgerError, match=rf"o\.{to}: File too large; nothing of it is left"):
            export(find([tmp_path], "pets"), path, format_of(path), tmp_path, Watch())
        gc.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_without_pyarrow_the_extra_is_named(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LedgerError, match=r"pip install 'dlconsole\[parquet\]', or write --to csv or jsonl"):
        write("o.parquet", line())
    assert write("o.csv", line()).rows == 1


def test_csv_is_read_alike_by_another_reader(write: Write, tmp_path: Path) -> None:
    from pyarrow import csv as arrow_csv

    lines = [line(f"{LIST}-{row}", caption=text) for row, text in enumerate(CAPTIONS, 1)]
    write("o.csv", *lines, columns=["key", "caption"])
    options = arrow_csv.ParseOptions(newlines_in_values=True)
    table = arrow_csv.read_csv(
        io.BytesIO((tmp_path / "o.csv").read_bytes()),
        parse_options=options,
        convert_options=arrow_csv.ConvertOptions(column_types={"caption": pa.string()}),
    )
    assert table["caption"].to_pylist() == CAPTIONS
