"""The file of bad rows: each once, whoever dies when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlconsole.services.items import Reject
from dlconsole.services.rejects import RejectFile


def new(folder: Path, said: list[str] | None = None, name: str = "urls.csv") -> RejectFile:
    return RejectFile(folder / "rejects", name, "0123456789abcdef", (said if said is not None else []).append)


def rows(*numbers: int) -> list[Reject]:
    return [Reject(number, "odd", f"row {number}") for number in numbers]


def in_file(folder: Path, name: str = "urls.csv-01234567.jsonl") -> list[int]:
    lines = (folder / "rejects" / name).read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") for line in lines)
    return [json.loads(line)["row"] for line in lines]


def test_a_list_without_bad_rows_has_no_file(tmp_path: Path) -> None:
    rejects = new(tmp_path)
    rejects.cut_behind(0)
    rejects.write([])
    rejects.close()
    assert list(tmp_path.iterdir()) == []


def test_a_bad_row_is_a_line_whatever_it_holds(tmp_path: Path) -> None:
    rejects = new(tmp_path, name="a b/ü\n.csv")
    data = [None, 'x"\n\0日', {"a": b"\xff", "b": [float("nan")]}, "\ud800", {"\udc80": 1}, "y" * 100_000]
    rejects.write([Reject(number, "why", value) for number, value in enumerate(data, 1)])
    rejects.close()
    (path,) = (tmp_path / "rejects").iterdir()
    assert path.name == "a_b_ü_.csv-01234567.jsonl"
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["data"] for line in found[:3]] == [None, 'x"\n\0日', {"a": "/w==", "b": [None]}]
    assert "ud800" in found[3]["data"] and len(found[5]["data"]) < 70_000
    assert [(line["row"], line["why"]) for line in found] == [(number, "why") for number in range(1, 7)]


def test_what_was_written_and_not_pushed_is_cut_off(tmp_path: Path) -> None:
    first = new(tmp_path)
    first.write(rows(3, 7))
    first.write(rows(12))
    first.close()
    path = tmp_path / "rejects" / "urls.csv-01234567.jsonl"
    with path.open("ab") as file:
        file.write(b'{"row":13,"why":"to')  # torn, as its feeder died
    second = new(tmp_path)
    second.cut_behind(12)
    second.write(rows(13))
    assert in_file(tmp_path) == [3, 7, 12, 13]
    second.cut_behind(7)  # Redis came back without its last second
    second.write(rows(9))
    assert in_file(tmp_path) == [3, 7, 9]
    second.close()
    third = new(tmp_path)
    third.cut_behind(0)  # fed once more
    assert in_file(tmp_path) == []


def test_two_feeders_of_a_list_write_two_files_with_each_row_once(tmp_path: Path) -> None:
    one, other = new(tmp_path), new(tmp_path)
    one.write(rows(1, 2))
    other.write(rows(3, 5))
    other.cut_own_behind(3)  # the block with row 5 was refused: somebody else had pushed it
    one.cut_behind(1)
    one.write(rows(5))
    assert in_file(tmp_path) == [1, 5]
    assert in_file(tmp_path, "urls.csv-01234567-2.jsonl") == [3]
    other.close()
    one.cut_behind(2)
    assert in_file(tmp_path, "urls.csv-01234567-2.jsonl") == []
    assert in_file(tmp_path) == [1]
    one.close()


@pytest.mark.parametrize("place", ["rejects", "rejects/urls.csv-01234567.jsonl"])
def test_a_place_that_cannot_be_written_is_said_once(place: str, tmp_path: Path) -> None:
    if "/" in place:
        (tmp_path / place).mkdir(parents=True)
    else:
        (tmp_path / place).write_text("")
    said: list[str] = []
    rejects = new(tmp_path, said)
    rejects.cut_behind(0)
    rejects.write(rows(1))
    rejects.write(rows(2))
    rejects.close()
    assert len(said) == 1
    assert said[0].startswith("warning: bad rows are not written down: ") and place in said[0]
