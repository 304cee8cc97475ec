"""The Bloom filter of a dataset: what it promises, and what of it survives whom."""

from __future__ import annotations

import fcntl
import hashlib
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dlconsole.errors import FeedError
from dlconsole.services.bloom import Bloom, Shape, open_bloom
from dlconsole.services.seen import Digests
from dlconsole.settings import Settings

LIST = hashlib.sha256(b"list").hexdigest()


def digests(first: int, end: int) -> Digests:
    raw = b"".join(hashlib.sha256(b"%d" % n).digest()[:16] for n in range(first, end))
    return np.frombuffer(raw, "<u8").reshape(-1, 2)


def opened(folder: Path, said: list[str] | None = None, **feed: object) -> Bloom:
    settings = Settings.model_validate(
        {"dataset": "ds", "state_dir": folder, "feed": {"bloom_items": 20_000, "bloom_error": 0.01, **feed}}
    )
    bloom = open_bloom(settings, (said if said is not None else []).append)
    bloom.begin(LIST, 1, 0)
    return bloom


def fed(bloom: Bloom, first: int, end: int) -> int:
    """Feed these and say how many were new."""
    new = bloom.first_ones(digests(first, end), first)
    bloom.confirm(digests(first, end)[new], end)
    return int(new.sum())


@pytest.mark.parametrize(
    ("error", "bits_each", "hashes"), [(0.01, 9.6, 7), (0.001, 14.4, 10), (0.5, 1.44, 1)]
)
def test_its_size_is_what_theory_says(error: float, bits_each: float, hashes: int) -> None:
    shape = Shape.of(1_000_000, error)
    assert shape.bits / shape.items == pytest.approx(bits_each, rel=0.01)
    assert shape.hashes == hashes


def test_it_errs_as_often_as_it_says_and_never_forgets(tmp_path: Path) -> None:
    bloom = opened(tmp_path)
    new = sum(fed(bloom, start, start + 2000) for start in range(0, 20_000, 2000))
    assert 19_900 < new < 20_000  # fewer are taken for seen while it is not full
    assert not bloom.first_ones(digests(0, 20_000), 20_000).any()
    assert "about 20,0" in bloom.words() or "about 19,9" in bloom.words()
    wrong = 1 - bloom.first_ones(digests(20_000, 60_000), 20_000).mean()
    assert wrong == pytest.approx(bloom.error, rel=0.15)
    assert bloom.error == pytest.approx(0.01, rel=0.15)
    bloom.close()


def test_beyond_its_size_it_says_its_real_error(tmp_path: Path) -> None:
    bloom = opened(tmp_path)
    for start in range(0, 40_000, 2000):
        assert bloom.is_over_full == (start > 20_000)
        bloom.confirm(digests(start, start + 2000), start + 2000)
    guessed = bloom.error
    bloom.words()
    assert bloom.error == pytest.approx(guessed, rel=0.05)
    assert bloom.error > 0.1
    bloom.close()


def test_it_is_kept_between_runs(tmp_path: Path) -> None:
    bloom = opened(tmp_path)
    assert fed(bloom, 0, 1000) == 1000
    before = bloom.words()
    bloom.close()
    bloom = opened(tmp_path)
    assert fed(bloom, 0, 1000) == 1000  # of the same list, before its frontier: Redis lost them
    bloom.begin(hashlib.sha256(b"other").hexdigest(), 1, 0)
    assert not bloom.first_ones(digests(0, 1000), 0).any()
    assert bloom.words().split("URLs")[0] == before.split("URLs")[0]
    bloom.close()


def test_only_what_redis_has_counts_as_seen(tmp_path: Path) -> None:
    bloom = opened(tmp_path)
    assert bloom.first_ones(digests(0, 10), 0).all()
    assert not bloom.first_ones(digests(5, 10), 10).any()  # on their way
    bloom.forget(digests(5, 10))
    bloom.confirm(digests(0, 5), 10)
    assert bloom.first_ones(digests(0, 10), 10).tolist() == [False] * 5 + [True] * 5
    bloom.close()
    bloom = opened(tmp_path)
    bloom.begin(LIST, 1, 10)
    assert bloom.first_ones(digests(0, 10), 10).tolist() == [False] * 5 + [True] * 5
    bloom.close()


def test_what_redis_lost_is_fed_again_until_the_list_is_settled(tmp_path: Path) -> None:
    bloom = opened(tmp_path)
    fed(bloom, 0, 3000)
    bloom.begin(LIST, 1, 1000)
    assert fed(bloom, 1000, 2000) == 1000
    assert fed(bloom, 2000, 3000) == 1000
    assert fed(bloom, 3000, 4000) >= 995
    bloom.begin(LIST, 2, 0)  # another turn is another matter
    assert fed(bloom, 0, 4000) == 0
    bloom.begin(LIST, 1, 0)
    bloom.settle(LIST)
    bloom.begin(LIST, 1, 0)
    assert fed(bloom, 0, 4000) == 0
    bloom.close()


def test_of_many_lists_the_latest_frontiers_are_kept(tmp_path: Path) -> None:
    bloom = opened(tmp_path)
    for number in range(130):
        bloom.begin(f"list {number}", 1, 0)
        bloom.confirm(digests(number, number + 1), 1)
    unsure = 0
    for number in range(130):
        bloom.begin(f"list {number}", 1, 0)
        unsure += int(bloom.first_ones(digests(number, number + 1), 0).sum())
    assert unsure == 128
    bloom.close()


def test_a_second_feeder_is_refused(tmp_path: Path) -> None:
    bloom = opened(tmp_path)
    with pytest.raises(FeedError, match="another feeder"):
        opened(tmp_path)
    bloom.close()
    opened(tmp_path).close()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"something else", "no Bloom filter"),
        (b"dlconsole bloom filter 1\n{}\n", "header"),
        (b"dlconsole bloom filter 1\n" + b'{"items": 0, "error": 0.1}\n', "header"),
        (b"dlconsole bloom filter 2\n" + b'{"items": 1000, "error": 0.1}\n', "no Bloom filter"),
        (b"dlconsole bloom filter 1\n" + b'{"items": 1000, "error": 0.1}\n', "cut off"),
    ],
)
def test_a_foreign_or_torn_file_is_said_and_left_alone(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bloom" / "ds"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(FeedError, match=words):
        opened(tmp_path)
    assert path.read_bytes() == content
    with path.open("rb") as file:  # nor is it locked any more
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_one_that_was_not_made_to_its_end_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "bloom" / "ds"
    path.parent.mkdir()
    path.write_bytes(bytes(5000))
    bloom = opened(tmp_path)
    assert fed(bloom, 0, 100) == 100
    assert path.stat().st_size == bloom.shape.file_bytes
    bloom.close()


def test_its_size_stays_and_another_redis_is_said(tmp_path: Path) -> None:
    opened(tmp_path).close()
    said: list[str] = []
    bloom = opened(tmp_path, said, bloom_items=50_000)
    assert bloom.shape.items == 20_000
    assert len(said) == 1 and "made for 20,000" in said[0]
    bloom.close()
    settings = Settings.model_validate(
        {"dataset": "ds", "state_dir": tmp_path, "redis": "redis://:secret@elsewhere:6379/0",
         "feed": {"bloom_items": 20_000, "bloom_error": 0.01}}
    )  # fmt: skip
    open_bloom(settings, said.append).close()
    assert "another Redis" in said[1] and "own Redis" in said[1]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may become larger than 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_no_room_is_said_before_anything_is_fed(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="too large"):
        opened(tmp_path, bloom_items=1_000_000)
    assert (tmp_path / "bloom" / "ds").stat().st_size == 0
    opened(tmp_path).close()
    assert (tmp_path / "bloom" / "ds").stat().st_mode & 0o077 == 0
