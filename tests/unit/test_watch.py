"""Which lists in a watched folder are ready to be fed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlconsole.services.watch import Folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub/deep").mkdir(parents=True)
    return root


def put(path: Path, text: str, at_s: int = 1000) -> Path:
    path.write_text(text)
    os.utime(path, (at_s, at_s))
    return path


def test_lists_are_ready_once_they_stay_the_same(root: Path) -> None:
    folders = Folders([root, root / "sub", root / "none"], [], 5)
    b, a = put(root / "b.txt", "x"), put(root / "sub/deep/a.csv.gz", "x")
    assert folders.ready(100) == folders.ready(104) == []
    assert folders.growing == 2
    put(b, "xy")
    assert folders.ready(105) == [a]
    put(b, "xy", at_s=1001)
    assert folders.ready(109) == [a]
    assert folders.ready(114) == [b, a]
    folders.give(b)
    assert folders.ready(200) == [a] and folders.growing == 1
    folders.give(a)
    os.replace(put(root / "new", "xy", at_s=1001), b)  # equal in all but its inode
    assert folders.ready(300) == []
    assert folders.ready(305) == [b]


@pytest.mark.parametrize(
    "name",
    [".hidden.txt", "a.txt.tmp", "a.txt.part", "a.tmp.txt", "a.part.csv.gz", "a.txt~", "a~.txt", "README", "a.zip",
     ".hidden/a.txt", "a.crdownload"],
)  # fmt: skip
def test_what_is_hidden_unfinished_or_no_list_is_left_alone(name: str, root: Path) -> None:
    (root / name).parent.mkdir(exist_ok=True)
    put(root / name, "x")
    folders = Folders([root], [], 5)
    assert folders.ready(0) == folders.ready(10) == []


def test_the_files_of_feeding_itself_are_no_lists(root: Path) -> None:
    put(root / "done_part.txt", "x")
    (root / "feed_rejects").mkdir()
    put(root / "feed_rejects/a.jsonl", "{}")
    folders = Folders([root], [root / "done_part.txt", root / "feed_rejects"], 5)
    assert folders.ready(0) == folders.ready(10) == []


def test_what_is_gone_is_forgotten(root: Path) -> None:
    folders = Folders([root], [], 5)
    for number in range(50):
        path = put(root / f"{number}.txt", "x")
        folders.ready(number * 10)
        assert folders.ready(number * 10 + 6) == [path]
        folders.give(path)
        path.unlink()
    folders.ready(10_000)
    assert len(folders._seen) == len(folders._given) == 0
