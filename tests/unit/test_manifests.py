"""Lists in every format: the same rows come out of each, and reading goes on from any block's end."""

from __future__ import annotations

import math
import sys
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from list_files import Rows, blocks_of, by_column, encoded, packed, rows_of, write_parquet

from dlconsole.errors import FeedError
from dlconsole.services.manifests import (
    Block,
    Header,
    Limits,
    Reading,
    Remote,
    expand,
    format_of,
    open_list,
)

# Each with what its cells cannot hold. A lone surrogate is no text in any of them.
FORMATS = {
    "txt": "",
    "csv": "",
    "tsv": "\t\r\n",
    "tsv-quoted": "",
    "jsonl": "",
    "json array": "",
    "json objects": "",
}
PACKINGS = ("", ".gz", ".zst")

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text(
    "a,\"'\t\r\n\\{}[]\0\ufeff\u2028é😀", max_size=8
)
urls = st.from_regex(r"https?://[a-z,]{1,8}\.example/[a-z0-9,%日\"]{0,12}", fullmatch=True)
rows_strategy = st.lists(
    st.fixed_dictionaries({"url": urls, "caption": words, "note": words}), min_size=1, max_size=9
)


def cleaned(rows: Rows, without: str) -> Rows:
    table = str.maketrans(dict.fromkeys(without, " "))
    return [{name: value.translate(table) for name, value in row.items()} for row in rows]


def expected(rows: Rows, kind: str) -> list[Any]:
    return [row["url"].encode() for row in rows] if kind == "txt" else list(rows)


def assert_it_goes_on_everywhere(path: Path, blocks: list[Block], reading: Reading, row_bytes: int) -> None:
    behind = 0
    for block in blocks:
        behind += len(rows_of([block]))
        rest = blocks_of(path, at=block.end, row_bytes=row_bytes, reading=reading)
        assert rows_of(rest) == rows_of(blocks)[behind:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("lists")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_strategy, crlf=st.booleans(), bom=st.booleans(), packing=st.sampled_from(PACKINGS))
@example(
    rows=[{"url": "http://a.example/", "caption": '"', "note": '\r\n"",'}], crlf=True, bom=True, packing=""
)
def test_every_format_gives_the_same_rows_and_goes_on_from_every_block(
    rows: Rows, crlf: bool, bom: bool, packing: str, folder: Path
) -> None:
    for kind, without in FORMATS.items():
        wanted = cleaned(rows, without)
        data = encoded(wanted, kind, newline="\r\n" if crlf else "\n", bom=bom)
        path = folder / f"list{packing}"
        path.write_bytes(packed(data, packing.removeprefix(".")))
        reading = Reading(kind.split()[0])
        blocks = blocks_of(path, reading=reading)
        found = [line.removesuffix(b"\r") if kind == "txt" else line for line in rows_of(blocks)]
        assert found == expected(wanted, kind), kind
        assert_it_goes_on_everywhere(path, blocks, reading, 1 << 20)
    write_parquet(folder / "list.parquet", by_column(rows))
    blocks = blocks_of(folder / "list.parquet")
    assert rows_of(blocks) == rows
    assert_it_goes_on_everywhere(folder / "list.parquet", blocks, Reading(), 1 << 20)


# -- csv and tsv ----------------------------------------------------------------------------------


def written(folder: Path, data: bytes, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def rows_in(folder: Path, data: bytes, name: str = "list.csv", *, row_bytes: int = 1 << 20) -> list[Any]:
    """The rows of a list, which reading also gives from every block on."""
    path = written(folder, data, name)
    blocks = blocks_of(path, rows=1, row_bytes=row_bytes)
    assert_it_goes_on_everywhere(path, blocks, Reading(), row_bytes)
    return rows_of(blocks)


UNCLOSED = "a quote is opened and not closed"


def test_an_unclosed_quote_is_one_bad_row_and_reading_goes_on_behind_its_line(folder: Path) -> None:
    # Neither closed by the quote that opens the next quoted field, nor by the end of the list.
    data = b'url,caption\na,"never closed\nb,two\nc,"three\nlines"\nd,"open\ne,"five"'
    good = [("b", "two"), ("c", "three\nlines"), ("e", "five")]
    rows = rows_in(folder, data)
    assert rows == [UNCLOSED, *pairs(good[:2]), UNCLOSED, *pairs(good[2:])]
    tail = b"".join(b"%d,x\n" % number for number in range(90))
    rows = rows_in(folder, b'url,caption\nhttp://a/1,"never closed\n' + tail, row_bytes=200)
    assert rows == [UNCLOSED, *pairs((str(number), "x") for number in range(90))]


def pairs(cells: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"url": url, "caption": caption} for url, caption in cells]


def test_quotes_that_never_close_are_looked_at_once_each(folder: Path) -> None:
    """Each of these lines opens a quote that none of the others closes; were each looked for up to the limit,
    this would take minutes.
    """
    line = b'x","y\n'
    path = written(folder, b"url,caption\n" + line * 50_000)
    started = time.process_time()
    assert rows_of(blocks_of(path, rows=2000)) == [UNCLOSED] * 50_000
    assert time.process_time() - started < 10


def test_a_row_with_other_columns_is_a_bad_one(folder: Path) -> None:
    wide, narrow = "has 3 columns where the list has 2", "has 1 column where the list has 2"
    data = b'url,caption\na,b,c\na\n\n"a"\r\nb,\xff\nc,"\nd\xff"\ne,f\r\n'
    assert rows_in(folder, data) == [
        wide,
        narrow,
        None,
        narrow,
        "not UTF-8",
        "not UTF-8",
        *pairs([("e", "f")]),
    ]
    found = rows_in(folder, data.replace(b",", b"\t"), "list.tsv")
    assert found == [
        wide,
        narrow,
        None,
        narrow,
        "not UTF-8",
        *pairs([("c", '"')]),
        "not UTF-8",
        *pairs([("e", "f")]),
    ]


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl", "list.json"])
def test_a_row_beyond_the_limit_is_bad_whatever_the_chunks(name: str, folder: Path) -> None:
    limit = 2000
    sizes = [10, limit + 1, 20, 3 * limit, limit * 1000, limit + 100, 30]
    urls = ["u" * size for size in sizes]
    kind = {"list.json": "json objects"}.get(name, name.removeprefix("list."))
    data = encoded([{"url": url, "caption": "c", "note": "n"} for url in urls], kind)
    rows = rows_in(folder, data, name, row_bytes=limit)
    assert [row if isinstance(row, str) else len(row["url"]) for row in rows] == [
        size if size < limit else f"longer than {limit} bytes" for size in sizes
    ]


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "json"])
def test_a_line_without_an_end_can_be_left(kind: str, folder: Path) -> None:
    path = written(folder, b"url,caption\n" + b'{"url": "' + b"x" * (5 << 20), f"endless.{kind}")
    asked: list[int] = []

    def idle() -> bool:
        asked.append(1)
        return len(asked) < 2

    with open_list(path, Limits(2000, 8192, 2000)) as source:
        blocks = list(source.blocks(idle=idle))
    assert len(asked) == 2
    assert not any(block.done or block.too_long for block in blocks)


def test_carriage_returns_nuls_and_odd_spaces_inside_a_row_are_kept(folder: Path) -> None:
    data = 'url,caption\n"a\rb",c\rd\n"e","f\0\u2028\x85\x0b\x1c"\n'.encode()
    assert rows_in(folder, data) == pairs([("a\rb", "c\rd"), ("e", "f\0\u2028\x85\x0b\x1c")])


def header_of(path: Path, reading: Reading | None = None) -> Header:
    with open_list(path, Limits(), reading) as source:
        return source.header()


def test_names_of_columns_can_be_told_apart(folder: Path) -> None:
    path = written(folder, b"\xef\xbb\xbf,URL, caption ,URL,,URL_2\n")
    assert header_of(path).names == ("0", "URL", "caption", "URL_2", "4", "URL_2_2")


def test_a_list_without_a_header_has_numbers_for_names(folder: Path) -> None:
    header = header_of(written(folder, b"a cat,http://a.example/1,7\n"))
    assert (header.names, header.has_names) == (("0", "1", "2"), False)
    assert rows_in(folder, b"\nhttp://a/1,a cat\n") == [{"0": "http://a/1", "1": "a cat"}]
    for data in (b"url\tcaption\nhttp://a/1\ta cat\n", b"http://a/1\ta cat\n", b"\ta cat\n"):
        header = header_of(written(folder, data, "list.tsv"), Reading("tsv", names=("url", "caption")))
        assert (header.names, header.sample[0]["caption"]) == (("url", "caption"), "a cat")


def test_tsv_knows_no_quotes_and_its_quoted_kind_does(folder: Path) -> None:
    data = b'url\tcaption\na\t"say ""cheese"""\nb\t5" wide\n'
    path = written(folder, data, "list.tsv")
    assert rows_of(blocks_of(path)) == pairs([("a", '"say ""cheese"""'), ("b", '5" wide')])
    quoted = rows_of(blocks_of(path, reading=Reading("tsv-quoted")))
    assert quoted == pairs([("a", 'say "cheese"'), ("b", '5" wide')])


@pytest.mark.parametrize(
    "name", ["list.csv", "list.tsv", "list.jsonl", "list.json", "list.txt.gz", "list.csv.zst"]
)
def test_a_list_without_rows_is_done_at_once(name: str, folder: Path) -> None:
    names = [b"url,caption\n"] if "csv" in name else [b"[]", b"[\n]\n"] if name == "list.json" else []
    for data in [b"", b"\xef\xbb\xbf", b"\n\n", b"\r\n", *names]:
        path = written(folder, packed(data, name.rpartition(".")[2]), name)
        blocks = blocks_of(path)
        assert [block.done for block in blocks][-1:] == [True]
        assert not [row for row in rows_of(blocks) if row and row.strip()]


def test_utf16_is_said(folder: Path) -> None:
    with pytest.raises(FeedError, match="iconv"):
        header_of(written(folder, "url,caption\n".encode("utf-16")))


# -- json and jsonl -------------------------------------------------------------------------------

NO_OBJECT = "no JSON object"


def test_lines_of_json_that_are_no_objects_are_bad_rows(folder: Path) -> None:
    lines = [
        b'{"url": "a"}',
        b"",
        b"[1]",
        b"7",
        b'"http://a/"',
        b"null",
        b"{",
        b'{"url": "\xff"}',
        b"  ",
        b"nope",
    ]
    rows = rows_in(folder, b"\r\n".join(lines), "list.jsonl")
    assert rows == [{"url": "a"}, None, *[NO_OBJECT] * 4, "no JSON", "not UTF-8", None, "no JSON"]


def test_what_python_takes_for_json_is_a_row(folder: Path) -> None:
    lines = [
        b'{"a": NaN, "b": -Infinity, "c": 1e999}',
        b'{"a": "\\ud800", "b": 123456789012345678901234567890}',
        b'{"a": "tab\there"}',
        b'{"a": 1, "a": 2}',
    ]
    wanted = [
        {"a": "nan", "b": -math.inf, "c": math.inf},
        {"a": "\ud800", "b": 123456789012345678901234567890},
        {"a": "tab\there"},
        {"a": 2},
    ]
    for name, data in (("l.jsonl", b"\n".join(lines)), ("l.json", b"[" + b",\n".join(lines) + b"]")):
        rows = rows_in_nan(folder, data, name)
        assert rows == wanted


def rows_in_nan(folder: Path, data: bytes, name: str) -> list[Any]:
    """NaN as text: it equals nothing."""
    rows = rows_of(blocks_of(written(folder, data, name)))
    return [{k: "nan" if v != v else v for k, v in row.items()} for row in rows]  # noqa: PLR0124


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b'[{"a": 1}, {"a": tru}, {"a": 2}]', [{"a": 1}, "no JSON", {"a": 2}]),
        (b'{"a": 1} nope, and "more" {"a": 2}', [{"a": 1}, "no JSON", {"a": 2}]),
        (b'[{"a": 1}, 7, "x", null, {"a": 2}]', [{"a": 1}, *[NO_OBJECT] * 3, {"a": 2}]),
        (b'[{"a": 1}, {"a": "never closed }, {"a": 3}]', [{"a": 1}, "no JSON"]),
        (b'[{"a": 1}, {"a": 2', [{"a": 1}, "no JSON"]),
        (b'[{"a": 1}]\n[{"a": 2}],,', [{"a": 1}, {"a": 2}]),
        (b'{"a": 1}\n{"b": {"c": [}]}\n{"a": 2}', [{"a": 1}, "no JSON", {"a": 2}]),
        (b'[{"a": "\xff"}, {"a": "\xe6\x97\xa5"}]', ["not UTF-8", {"a": "日"}]),
        (b'{"a": "\xff', ["no JSON"]),
        (rb'{"a": "\"}{"} {"a": nope "}\\"} {"a": 2}', [{"a": '"}{'}, "no JSON", {"a": 2}]),
        (b'{"a":' + b"[" * 3000, ["no JSON that can be read"]),
        (b'{"a":' + b"9" * 9000 + b'} {"a": 1}', ["no JSON that can be read", {"a": 1}]),
    ],
)
def test_json_that_cannot_be_read_costs_no_more_than_itself(
    data: bytes, wanted: list[Any], folder: Path
) -> None:
    assert rows_in(folder, data, "list.json") == wanted


# -- packed lists ---------------------------------------------------------------------------------


def test_packed_text_that_ends_too_early_or_is_none_is_said(folder: Path) -> None:
    data = b"".join(b"http://a.example/%d\n" % number for number in range(2000))
    for packing in ("gz", "zst"):
        whole = packed(data, packing)
        path = written(folder, whole[:-7], f"list.txt.{packing}")
        with open_list(path) as source, pytest.raises(FeedError, match="not whole"):
            list(source.blocks())
        path.write_bytes(data)
        with (
            open_list(path) as source,
            pytest.raises(FeedError, match=f"list.txt.{packing}: is damaged, or no"),
        ):
            list(source.blocks())


def test_zeros_behind_a_gzip_member_are_no_text(folder: Path) -> None:
    path = written(folder, packed(b"a\nb\n", "gz") + bytes(70_000), "list.txt.gz")
    assert rows_of(blocks_of(path)) == [b"a", b"b"]


@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_memory_is_flat_however_far_a_list_unpacks(packing: str, folder: Path) -> None:
    """96 MiB of one line in a few KiB."""
    path = folder / f"bomb.txt.{packing}"
    path.write_bytes(packed(b"x" * (96 << 20), packing) + packed(b"\nhttp://a/\n", packing))
    tracemalloc.start()
    rows = rows_of(blocks_of(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == ["too long", b"http://a/"]
    assert path.stat().st_size < 1 << 20
    assert peak < 48 << 20


# -- parquet --------------------------------------------------------------------------------------


def test_every_type_of_parquet_becomes_something_json_can_say(folder: Path) -> None:
    import pyarrow as pa

    day = datetime(2026, 11, 28, 21, 5, tzinfo=UTC)
    columns = {
        "ns": pa.array([1_500_000_000_000_000_001, None], pa.timestamp("ns", "UTC")),
        "time": pa.array([1, 2], pa.time64("ns")),
        "took": pa.array([1, 2], pa.duration("ns")),
        "us": pa.array([day, None], pa.timestamp("us", "UTC")),
        "word": pa.array(["a", "b"]).dictionary_encode(),
        "bytes": pa.array([b"\xff", None]),
        "price": pa.array([Decimal("1.10"), None]),
        "boxes": pa.array([[[0.5, 1.0]], []]),
        "facts": pa.array([{"a": 1}, None]),
        "big": pa.array(["日", None], pa.large_string()),
    }
    first, second = rows_of(blocks_of(write_parquet(folder / "types.parquet", columns)))
    assert first == {
        "ns": "2017-07-14T02:40:00.000000001Z",
        "time": "00:00:00.000000001",
        "took": "1",
        "us": day,
        "word": "a",
        "bytes": b"\xff",
        "price": Decimal("1.10"),
        "boxes": [[0.5, 1.0]],
        "facts": {"a": 1},
        "big": "日",
    }
    assert (second["ns"], second["bytes"], second["boxes"], second["facts"]) == (None, None, [], None)


def test_times_of_parquet_that_python_cannot_hold_are_numbers_or_text(folder: Path) -> None:
    import pyarrow as pa

    def nested(kind: Any) -> Any:
        return pa.struct([("all", pa.list_(kind)), ("by", pa.map_(pa.string(), kind))])

    far = {"all": [2**62, None], "by": [("a", 2**62)]}
    columns = {
        "ms": pa.array([2**62, 0], pa.timestamp("ms")),
        "zone": pa.array([-(2**62), 0], pa.timestamp("us", "UTC")),
        "nowhere": pa.array([5, None], pa.timestamp("us", "No/Where")),
        "day": pa.array([2**31 - 1, 0], pa.date32()),
        "word": pa.array([-(2**31), 0], pa.date32()).dictionary_encode(),
        "took": pa.array([2**62, None], pa.duration("s")),
        "clock": pa.array([-5, None], pa.time64("ns")),
        "facts": pa.array([far, None], nested(pa.timestamp("us"))),
        "ns": pa.array([{"all": [1], "by": []}, None], nested(pa.timestamp("ns"))),
        "half": pa.array([1.5, None], pa.float16()),
        "wide": pa.array([Decimal("1" * 60), None], pa.decimal256(70, 2)),
    }
    first, second = rows_of(blocks_of(write_parquet(folder / "far.parquet", columns)))
    assert first == {
        "ms": 2**62,
        "zone": -(2**62),
        "nowhere": 5,
        "day": 2**31 - 1,
        "word": -(2**31),
        "took": 2**62,
        "clock": -5,
        "facts": {"all": [2**62, None], "by": [("a", 2**62)]},
        "ns": {"all": ["1970-01-01T00:00:00.000000001"], "by": []},
        "half": 1.5,
        "wide": Decimal("1" * 60 + ".00"),
    }
    assert (second["ms"], second["day"], second["facts"]) == (datetime(1970, 1, 1), date(1970, 1, 1), None)


def test_a_row_of_parquet_beyond_the_limit_is_bad_and_blocks_are_small(folder: Path) -> None:
    import pyarrow as pa

    long = "x" * 3000
    captions = ["a", long, "b", "c", long, long, "d"]
    kinds = {
        "text": captions,
        "binary": pa.array([text.encode() for text in captions]),
        "large": pa.array(captions, pa.large_string()),
        "list": pa.array([[text] for text in captions]),
        "facts": pa.array(
            [{"a": [("k", text)]} for text in captions], pa.struct([("a", pa.map_(pa.string(), pa.string()))])
        ),
    }
    for name, values in kinds.items():
        columns = {"n": list(range(7)), "caption": values}
        path = write_parquet(folder / f"{name}.parquet", columns, row_group=5)
        blocks = blocks_of(path, rows=100, row_bytes=2000)
        shown = [row if isinstance(row, str) else row["n"] for row in rows_of(blocks)]
        bad = "longer than 2000 bytes"
        assert shown == [0, bad, 2, 3, bad, bad, 6], name
        assert_it_goes_on_everywhere(path, blocks, Reading(), 2000)
    path = write_parquet(folder / "large.parquet", {"url": ["x" * 1_000_000] * 9 + ["y"] * 9}, row_group=18)
    assert [len(block.rows) for block in blocks_of(path, rows=100)] == [4, 4, 10, 0]


def test_a_dictionary_of_long_texts_is_not_written_out_at_once(folder: Path) -> None:
    """400 rows of one text of 3 MB, and a short one first: 1.2 GB in a small file."""
    import pyarrow as pa

    texts = pa.DictionaryArray.from_arrays([0] + [1] * 400, ["a", "x" * 3_000_000])
    path = write_parquet(folder / "dict.parquet", {"caption": texts}, row_group=401)
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        rows = rows_of(blocks_of(path, rows=2000))
    finally:
        pa.set_memory_pool(usual)
    assert rows == [{"caption": "a"}, *["longer than 1048576 bytes"] * 400]
    assert 0 < pool.max_memory() < 32 << 20


def test_text_of_parquet_that_is_not_utf8_is_a_bad_row(folder: Path) -> None:
    import pyarrow as pa

    bad = pa.array([b"a\xff", b"b", None], pa.binary()).view(pa.string())
    path = write_parquet(folder / "bad.parquet", {"url": ["x", "y", "z"], "caption": bad})
    assert rows_of(blocks_of(path)) == ["not UTF-8", *pairs([("y", "b")]), {"url": "z", "caption": None}]
    bad = pa.ListArray.from_arrays([0, 1, 2, 3], bad)
    path = write_parquet(folder / "bad.parquet", {"url": ["x", "y", "z"], "caption": bad})
    assert [row["url"] if isinstance(row, dict) else row for row in rows_of(blocks_of(path))] == [
        "not UTF-8",
        "y",
        "z",
    ]


def test_columns_of_one_name_are_all_read(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["url", "url"])
    pq.write_table(table, folder / "twice.parquet")
    with open_list(folder / "twice.parquet") as source:
        found = list(source.blocks(names=frozenset({"url"})))
    assert rows_of(found) == [{"url": "a", "url_2": "b"}]


def test_row_groups_in_front_of_a_position_are_not_read(folder: Path) -> None:
    path = write_parquet(
        folder / "groups.parquet", {"url": [str(number) * 50 for number in range(60)]}, row_group=20
    )
    data = bytearray(path.read_bytes())
    data[4:600] = bytes(596)  # the first group, or most of it
    path.write_bytes(data)
    assert [row["url"][:2] for row in rows_of(blocks_of(path, at=41, rows=50))] == [
        str(n) for n in range(41, 60)
    ]
    with open_list(path) as source, pytest.raises(FeedError, match="damaged behind its row 0"):
        list(source.blocks())


def test_parquet_that_is_none_or_has_no_reader_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(folder, b"PAR1 no such file", "list.parquet")
    with pytest.raises(FeedError, match=r"list\.parquet: is damaged, or no Parquet file"):
        header_of(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FeedError, match=r"pip install 'dlconsole\[parquet\]'"):
        header_of(path)


# -- where lists are ------------------------------------------------------------------------------


def test_words_name_files_folders_globs_urls_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "b/2.csv.gz",
        "b/1.parquet",
        "b/README.md",
        "b/.x.txt",
        "b/c/3.ndjson",
        "done.txt",
        "[x].txt",
        "a.odd",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("rejects").mkdir()
    Path("rejects/r.jsonl").touch()
    without = [tmp_path / "done.txt", tmp_path / "rejects"]
    below = [Path("b/1.parquet"), Path("b/2.csv.gz"), Path("b/c/3.ndjson")]
    assert expand(["b"], but=without) == below
    assert expand(["."], but=without) == [Path("[x].txt"), *below]
    assert expand(["[x].txt", "a.odd", "-", "a.odd"]) == [Path("[x].txt"), Path("a.odd"), Path("-")]
    assert expand(["b/*.gz", "b/**/3*", "none.txt"]) == [below[1], below[2], Path("none.txt")]
    assert expand(["HTTPS://user:pw@h.example/l.csv?key=1"]) == [
        Remote("HTTPS://user:pw@h.example/l.csv?key=1")
    ]
    for word in ("x*.csv", "http:///l.csv", "http://h:0/l.csv"):
        with pytest.raises(FeedError):
            expand([word])
    Path("empty").mkdir()
    with pytest.raises(FeedError, match="no list in this folder"):
        expand(["empty"])


def test_a_url_never_shows_what_may_be_secret() -> None:
    place = Remote("https://user:pass@h.example:8443/a/l.csv?X-Signature=secret#x")
    assert str(place) == "https://h.example:8443/a/l.csv"
    assert "secret" not in repr(place) and "pass" not in repr(place)


@pytest.mark.parametrize(
    ("name", "wanted", "fallback", "found"),
    [
        ("a.CSV", "", "", "csv"),
        ("a.tsv.gz", "", "csv", "tsv.gz"),
        ("a.ndjson.zst", "", "", "jsonl.zst"),
        ("a.csv.gz", "tsv", "", "tsv.gz"),
        ("part-0001", "", "tsv", "tsv"),
        ("part-0001.gz", "", "", "txt.gz"),
        ("a.parquet", "", "", "parquet"),
        (".csv", "", "", "txt"),
        ("-", "jsonl", "csv", "jsonl"),
    ],
)
def test_the_format_is_told_by_the_name(name: str, wanted: str, fallback: str, found: str) -> None:
    assert str(format_of(Path(name), wanted, fallback)) == found
