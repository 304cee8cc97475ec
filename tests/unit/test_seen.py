"""URLs that were seen, exactly."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest

from dlconsole.errors import FeedError
from dlconsole.services.feed_choice import Choice
from dlconsole.services.feed_report import Position
from dlconsole.services.feed_windows import OpenWindow
from dlconsole.services.items import Tally, TaskWriter
from dlconsole.services.seen import Digests, SeenInList, digests_of
from dlconsole.settings import Settings


def digests(*numbers: int) -> Digests:
    raw = b"".join(hashlib.sha256(b"%d" % n).digest()[:16] for n in numbers)
    return np.frombuffer(raw, "<u8").reshape(-1, 2)


@pytest.fixture
def seen(tmp_path: Path) -> SeenInList:
    return SeenInList(tmp_path)


def test_each_of_many_is_new_once_whatever_the_blocks(seen: SeenInList) -> None:
    chance = random.Random(1)
    numbers = [chance.randrange(60_000) for _ in range(150_000)]  # it grows twice on the way
    known: set[int] = set()
    while numbers:
        block, numbers = numbers[: chance.randint(1, 3000)], numbers[3000:]
        wanted = [n not in known and not known.add(n) for n in block]  # type: ignore[func-returns-value]
        assert seen.first_ones(digests(*block), 0).tolist() == wanted


def test_what_was_not_pushed_is_new_once_more(seen: SeenInList) -> None:
    assert seen.first_ones(digests(1, 2, 3, 2), 0).tolist() == [True, True, True, False]
    seen.forget(digests(2, 3))
    seen.learn(digests(3))
    assert seen.first_ones(digests(1, 2, 3, 2, 4), 0).tolist() == [False, True, False, False, True]


def test_what_a_limit_cuts_off_is_not_seen(seen: SeenInList) -> None:
    urls = [b"http://a.example/%d" % (i % 30) for i in range(60)]
    items = TaskWriter(Settings()).tasks(urls, Tally())
    nowhere = Position("list")
    first = Choice(10, seen).of(OpenWindow(nowhere, nowhere, items), 2000, 3)
    assert (first.items, first.taken) == (items[:7], 7)
    rest = Choice(None, seen).of(OpenWindow(nowhere, nowhere, items, taken=7), 2000, 10)
    assert (rest.items, rest.taken) == (items[7:30], 53)


def test_nothing_is_left_in_the_folder_and_a_reset_forgets_all(seen: SeenInList, tmp_path: Path) -> None:
    seen.first_ones(digests(*range(40_000)), 0)
    assert list(tmp_path.iterdir()) == []
    seen.reset()
    assert seen.first_ones(digests(1), 0).all()
    seen.close()


def test_a_digest_of_nothing_but_zeros_is_one_like_others(seen: SeenInList) -> None:
    assert seen.first_ones(np.zeros((2, 2), "<u8"), 0).tolist() == [True, False]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FeedError, match="--temp"):
        SeenInList(tmp_path / "file" / "folder")


def test_a_url_has_one_digest_however_its_item_is_written() -> None:
    urls = [
        "http://a.example/1",
        "http://a.example/日本",
        'http://a.example/"q"\\',
        "http://a.example/\ud83d",
    ]
    legacy = [TaskWriter(Settings()).tasks([url.encode()], Tally())[0] for url in urls[:3]]
    compact = [
        b'{"img_path":"/x","img_url":"http://a.example/1","caption":"\\"img_url\\":\\"http://b.example\\""}',
        '{"img_path":"/x","img_url":"http://a.example/日本"}'.encode(),
        b'{"img_path":"/\\"img_url\\": \\"x","img_url":"http://a.example/\\"q\\"\\\\"}',
    ]
    wanted = [hashlib.sha256(url.encode("utf-8", "surrogatepass")).digest()[:16] for url in urls[:3]]
    for items in (legacy, compact):
        assert [row.tobytes() for row in digests_of(items)] == wanted
    assert digests_of([]).shape == (0, 2)
