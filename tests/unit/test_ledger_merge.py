"""One line a task, whatever was torn, doubled, compressed or is still being written."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings, strategies as st
from ledger_support import LIST, ledger, line

from dlconsole.errors import LedgerError
from dlconsole.services import ledger_files, ledger_merge, ledger_sort
from dlconsole.services.ledger_files import Found, find, of_files
from dlconsole.services.ledger_lines import Line, LineReader, Row, order
from dlconsole.services.ledger_merge import Merger, Watch, check_room, last_lines, plan, raw_lines
from dlconsole.services.ledger_sort import Sorter


def merged(found: Found, run_bytes: int = ledger_sort.RUN_BYTES) -> tuple[list[bytes], ledger_merge.Reading]:
    with Merger(found, Line, Path(tempfile.gettempdir()), Watch(), run_bytes) as merger:
        merger.read(raw_lines)
        return [raw for raws in merger.kept() for raw in raws], merger.reading


def keys_of(lines: Sequence[bytes]) -> list[str]:
    return [json.loads(one)["key"] for one in lines]


# -- the last line of a task ------------------------------------------------------------------------

KEYS = st.one_of(
    st.builds(lambda row: f"{LIST}-{row}", st.integers(1, 30)),
    st.sampled_from(
        [
            "ffffffffffff-2",
            "0a1b2c3d0a1b-01",
            "0a1b2c3d0a1b",
            "",
            "-",
            "\x00",
            "\x01\x02",
            "\n",
            "é",
            "a\ud800",
        ]
    ),
)
SHARDS = st.lists(st.lists(st.tuples(KEYS, st.integers(0, 4)), max_size=12), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(shards=SHARDS, torn=st.data(), run_bytes=st.sampled_from([0, 1500, 1 << 20]))
def test_of_several_lines_the_one_that_ended_last_counts_then_the_later_one(shards, torn, run_bytes) -> None:
    """A plain dict over all complete lines is the truth, however small the runs are that are sorted."""
    last: dict[str, tuple[int, bytes]] = {}
    with tempfile.TemporaryDirectory() as folder:
        number, store = 0, ledger(Path(folder), {})
        for index, shard in enumerate(shards):
            text, complete = b"", []
            for key, ended_ms in shard:
                number += 1
                raw = json.dumps(
                    {"key": key, "outcome": "stored", "url": f"u{number}", "ended_ms": ended_ms}
                ).encode()
                text += raw + b"\n"
                complete.append((key, ended_ms, raw))
            cut = torn.draw(st.integers(0, len(complete[-1][2]) if complete else 0))
            if cut:
                text, complete = text[:-cut], complete[:-1]
            (store / "pets" / "ledger" / f"web-{index}.jsonl").write_bytes(text)
            for key, ended_ms, raw in complete:
                if key not in last or ended_ms >= last[key][0]:
                    last[key] = ended_ms, raw
        lines, reading = merged(find([store], "pets"), run_bytes)
    assert sorted(lines) == sorted(raw for _, raw in last.values())
    assert keys_of(lines) == sorted(last, key=order)
    assert reading.bad == 0
    assert reading.tasks == len(last)


def test_rows_come_in_the_order_of_their_source_other_keys_behind_them() -> None:
    keys = [
        "0a1b2c3d0a1b-9",
        "0a1b2c3d0a1b-10",
        f"0a1b2c3d0a1b-{10**30}",
        "0b0000000b00-1",
        "0a1b2c3d0a1b",
        "0A1B2C3D-1",
        "0a1b2c3d0a1b-07",
    ]
    assert sorted(keys, key=order) == [*keys[:4], *sorted(keys[4:])]


@given(st.lists(st.text("\0\1\2\3\n-019a", max_size=12), unique=True, max_size=20))
def test_different_keys_stay_different_and_have_no_byte_that_parts_records(keys: list[str]) -> None:
    ordered = [order(key) for key in keys]
    assert len(set(ordered)) == len(keys)
    assert not any("\n" in text or "\0" in text for text in ordered)


def test_the_later_file_then_the_later_line_decides_between_lines_of_one_time(tmp_path: Path) -> None:
    lines = {name: [line(ended_ms=5, url=f"{name} {number}") for number in (1, 2)] for name in ("a", "b")}
    store = ledger(tmp_path, {f"{name}.jsonl": found for name, found in lines.items()})
    assert merged(find([store], "pets"))[0] == [lines["b"][1]]


def test_several_stores_are_one_ledger_whatever_their_order(tmp_path: Path) -> None:
    both = {"ended_ms": 5}
    first = [line(ended_ms=1, url="old"), line(f"{LIST}-2", **both, url="z")]
    second = [line(ended_ms=2, url="new"), line(f"{LIST}-2", **both, url="a"), line(f"{LIST}-3", url="only")]
    stores = [ledger(tmp_path / "a", {"z.jsonl": first}), ledger(tmp_path / "b", {"a.jsonl": second})]
    for named in (stores, stores[::-1]):
        lines, _ = merged(find(named, "pets"))
        assert keys_of(lines) == [f"{LIST}-{row}" for row in (1, 2, 3)]
        assert [json.loads(one)["url"] for one in lines] == ["new", "z", "only"]


def test_a_store_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    store = ledger(tmp_path / "a", {"a.jsonl": [line()]})
    (tmp_path / "b").symlink_to(store)
    found = find([store, tmp_path / "b"], "pets")
    assert len(found.files) == len(found.left_out) == 1


def test_the_lines_of_the_library_come_as_records_with_their_json(tmp_path: Path) -> None:
    store = ledger(
        tmp_path, {"a.jsonl": [line(f"{LIST}-10"), line(f"{LIST}-9", caption="a\ncat", columns={"x": [1]})]}
    )
    with closing(last_lines([store], "pets", tmp_path)) as lines:
        found = list(lines)
    assert [one.key for one in found] == [f"{LIST}-9", f"{LIST}-10"]
    assert bytes(found[0].caption) == b'"a\\ncat"'
    assert bytes(found[0].columns) == b'{"x":[1]}'


# -- what is no line --------------------------------------------------------------------------------


def test_a_torn_last_line_is_dropped_and_said(tmp_path: Path) -> None:
    store = ledger(tmp_path, {"a.jsonl": [line()], "b.jsonl": [line(f"{LIST}-2")]})
    torn = store / "pets" / "ledger" / "a.jsonl"
    torn.write_bytes(torn.read_bytes() + line(f"{LIST}-3"))
    lines, reading = merged(find([store], "pets"))
    assert keys_of(lines) == [f"{LIST}-1", f"{LIST}-2"]
    assert reading.torn == [str(torn)]


def test_lines_that_are_none_of_a_ledger_are_counted_shown_and_left_out(tmp_path: Path) -> None:
    bad = [
        b"x",
        b"[]",
        b'{"key":"k"}',
        line(outcome="lost"),
        line(bytes=-1),
        line(width=2**63),
        line(ended_ms=2**48),
    ]
    bad += [line() + line(), line()[:20] + line(), b"\0" * 40]
    lines, reading = merged(find([ledger(tmp_path, {"a.jsonl": [*bad, b"", b" ", line()]})], "pets"))
    assert lines == [line()]
    assert (reading.bad, len(reading.samples)) == (len(bad), 5)
    assert reading.samples[2].endswith('a.jsonl line 3: Object missing required field `outcome`: {"key":"k"}')


def test_what_only_python_takes_for_json_is_a_line(tmp_path: Path) -> None:
    foreign = [
        line(f"{LIST}-1")[:-1] + b',"caption":"\\ud83d"}',
        line(f"{LIST}-2")[:-1] + b',"columns":{"x":NaN,"y":1e400}}',
        line(f"{LIST}-3")[:-1] + b',"caption":"\xff\xfe"}',
        line(f"{LIST}-4")[:-1] + b',"id":' + b"9" * 5000 + b"}",
    ]
    lines, reading = merged(find([ledger(tmp_path, {"a.jsonl": foreign})], "pets"))
    assert lines == foreign
    assert reading.bad == 0


def test_a_line_split_over_two_does_not_shift_those_around_it() -> None:
    """Two objects in one line and one object over two lines: as many objects as lines."""
    half = b'{"key":"c","outcome":"stored","url":\n"u"}\n'
    text = line("a") + line("b") + b"\n" + half + line("d") + b"\n"
    raws, lines = LineReader(Line).read(text)
    assert raws == [line("d")]
    assert [one.key for one in lines] == ["d"]


def test_an_overlong_line_is_left_out_without_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_files, "MAX_LINE_BYTES", 300)
    monkeypatch.setattr(ledger_files, "CHUNK_BYTES", 100)
    long = line("long", message="x" * 1000)
    store = ledger(tmp_path, {"a.jsonl": [line("a"), long, long, line("b"), long]})
    file = find([store], "pets").files[0]
    blocks = list(file.blocks(100))
    assert b"".join(block.text for block in blocks) == line("a") + b"\n" + line("b") + b"\n"
    assert sum(block.overlong for block in blocks) == 3
    assert not file.torn


# -- files ------------------------------------------------------------------------------------------


def test_a_growing_file_is_read_as_it_was_at_the_start(tmp_path: Path) -> None:
    store = ledger(tmp_path, {"a.jsonl": [line(f"{LIST}-1")]})
    path = store / "pets" / "ledger" / "a.jsonl"
    with path.open("ab", buffering=0) as growing:
        growing.write(line(f"{LIST}-2")[:30])
        found = find([store], "pets")
        growing.write(line(f"{LIST}-2")[30:] + b"\n" + line(f"{LIST}-3") + b"\n")
        lines, reading = merged(found)
    assert keys_of(lines) == [f"{LIST}-1"]
    assert reading.torn == [str(path)]
    assert keys_of(merged(find([store], "pets"))[0]) == [f"{LIST}-{row}" for row in (1, 2, 3)]


def packed(name: str, data: bytes) -> bytes:
    return gzip.compress(data) if name.endswith(".gz") else zstandard.compress(data)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_compressed_files_are_read_also_of_several_parts(tmp_path: Path, name: str) -> None:
    store = ledger(tmp_path, {"b.jsonl": [line(f"{LIST}-5")]})
    parts = [line(f"{LIST}-{row}", message="x" * 70_000) + b"\n" for row in (1, 2, 3)]
    parts[1:2] = [parts[1][:50], parts[1][50:]]
    (store / "pets" / "ledger" / name).write_bytes(b"".join(packed(name, part) for part in parts))
    assert keys_of(merged(find([store], "pets"))[0]) == [f"{LIST}-{row}" for row in (1, 2, 3, 5)]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "wrong"])
def test_a_damaged_compressed_file_is_an_error_that_says_what_to_do(
    tmp_path: Path, name: str, damage: str
) -> None:
    path = ledger(tmp_path, {}) / "pets" / "ledger" / name
    data = packed(name, b"".join(line(str(os.urandom(9).hex())) + b"\n" for _ in range(3000)))
    path.write_bytes(data[:-1] if damage == "cut" else b"no such thing\n")
    with pytest.raises(
        LedgerError, match=rf"{name}: is damaged or not whole .* -dc\), and move it out of the folder"
    ):
        merged(find([tmp_path], "pets"))


def test_a_plain_file_is_read_instead_of_the_compressed_one_beside_it(tmp_path: Path) -> None:
    store = ledger(tmp_path, {"a.jsonl": [line()], "a.jsonl.zst": [b"half of it"]})
    found = find([store], "pets")
    assert [file.path.name for file in found.files] == ["a.jsonl"]
    assert found.left_out == (
        f"{store}/pets/ledger/a.jsonl.zst: a.jsonl lies beside it, and is read instead",
    )


def test_a_file_that_went_since_it_was_found_is_said(tmp_path: Path) -> None:
    found = find([ledger(tmp_path, {"a.jsonl": [line()]})], "pets")
    found.files[0].path.unlink()
    with pytest.raises(
        LedgerError, match=r"a\.jsonl: is gone since the reading began .*: run the command again"
    ):
        merged(found)


def test_a_store_without_a_ledger_is_an_error_that_names_the_folder_and_what_there_is(tmp_path: Path) -> None:
    store = ledger(tmp_path / "store", {"a.jsonl": [line()]}, "cats")
    with pytest.raises(
        LedgerError, match=r"store/pets/ledger: there is no ledger; --dataset names .*: cats$"
    ):
        find([store], "pets")
    with pytest.raises(
        LedgerError, match=r"there is no ledger; --store names the folder that workers write to"
    ):
        find([tmp_path / "other"], "pets")
    with pytest.raises(LedgerError, match=r"store/pets/ledger: holds no \*\.jsonl"):
        find([ledger(store, {".a.jsonl.part": [], ".b.jsonl": [], "c.txt": []})], "pets")
    with pytest.raises(LedgerError, match=r"c\.txt: is no file of a ledger"):
        of_files([store / "pets" / "ledger" / "c.txt"])


# -- sorting ----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")), max_size=40), max_size=20
    )
)
def test_runs_on_disk_come_back_sorted(blocks: list[list[bytes]]) -> None:
    with closing(Sorter(Path(tempfile.gettempdir()), run_bytes=1000)) as sorter:
        for block in blocks:
            sorter.add(block)
        batches = list(sorter.batches())
    assert all(batches)
    assert [one for batch in batches for one in batch] == sorted(one for block in blocks for one in block)


def test_many_runs_become_fewer_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_sort, "FAN_IN", 3)
    monkeypatch.setattr(ledger_sort, "_LEAST_BLOCK", 64)
    monkeypatch.setattr(ledger_sort, "_MERGE_BYTES", 64)
    records = [f"{number * 7919 % 5000:05} {'x' * (number % 200)}".encode() for number in range(5000)]
    before = len(os.listdir("/proc/self/fd"))
    sorter = Sorter(tmp_path, run_bytes=1)
    for start in range(0, 5000, 50):
        sorter.add(records[start : start + 50])
    assert len(os.listdir("/proc/self/fd")) - before <= 3 * 4  # of 100 runs, merged by threes
    assert [one for batch in sorter.batches() for one in batch] == sorted(records)
    sorter.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ledger(tmp_path, {"a.jsonl": [line(f"{LIST}-{row}") for row in range(1, 2000)]})
    planned = plan(find([store], "pets"))
    assert planned.temp_bytes == 0  # memory is enough
    assert 1900 < planned.lines < 2100
    monkeypatch.setattr(ledger_merge, "room", lambda size, _count: size << 30)
    with pytest.raises(
        LedgerError, match=r"free, and sorting takes about .* there; --temp names another folder"
    ):
        check_room(plan(find([store], "pets")), tmp_path)


def test_the_size_of_compressed_files_is_estimated_from_their_beginning(tmp_path: Path) -> None:
    text = b"".join(line(f"{LIST}-{row}", sha256=os.urandom(32).hex()) + b"\n" for row in range(1, 5000))
    folder = ledger(tmp_path, {}) / "pets" / "ledger"
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        (folder / name).write_bytes(packed(name, text))
    planned = plan(find([tmp_path], "pets"))
    assert planned.text_bytes == pytest.approx(2 * len(text), rel=0.25)
    assert planned.lines == pytest.approx(2 * 4999, rel=0.25)


def test_a_disk_that_fills_up_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(
        LedgerError, match=r"gone: No such file or directory: the temporary files of sorting go there"
    ):
        Sorter(tmp_path / "gone", run_bytes=1).add([b"a"])


def test_rows_hold_what_lines_hold() -> None:
    text = line(caption="a", id=5, hash=None, columns={"b": 1.5}) + b"\n"
    _, (row,) = LineReader(Row).read(text)
    assert (row.caption, row.id, row.hash, row.columns) == ("a", 5, None, {"b": 1.5})
