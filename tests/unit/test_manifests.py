"""Lists in every format: the same rows come out of each, and reading goes on from any block's end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from list_files import Rows, blocks_of, encoded, packed, rows_of, write_parquet

from dlconsole.services.manifests import Block, Reading

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


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    write_parquet(folder / "list.parquet", rows)
    blocks = blocks_of(folder / "list.parquet")
    assert rows_of(blocks) == rows
    assert_it_goes_on_everywhere(folder / "list.parquet", blocks, Reading(), 1 << 20)
