"""The guard over the store, on a clock of the test's own and a real store."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit_support import Clock

from dlconsole.errors import StoreError
from dlconsole.settings import GuardSettings
from dlconsole.workers.files import Store
from dlconsole.workers.guard import StoreGuard
from dlconsole.workers.places import place_of

FULL = StoreError("store /x: Disk quota exceeded")
SETTINGS = GuardSettings(check_s=1, max_used_percent=100)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


def opened(store: Store, clock: Clock) -> StoreGuard:
    guard = StoreGuard(SETTINGS, store, clock)
    guard.open()
    return guard


def waited_s(guard: StoreGuard, clock: Clock) -> float:
    """Until it says that the store is well; it says why all the while."""
    began = clock.now
    while why := guard.look():
        assert why == str(FULL)
        clock.now += 0.1
        assert clock.now < began + 1000
    return clock.now - began


def test_a_store_that_fails_again_after_each_trial_is_tried_less_and_less_often(
    store: Store, clock: Clock
) -> None:
    guard = opened(store, clock)
    pauses = []
    for _ in range(12):
        guard.failed(FULL)
        guard.failed(FULL)  # of the same moment: no further trial failed
        pauses.append(waited_s(guard, clock))
    for pause, longest in zip(pauses, (1, 2, 4, 8, 16, *[20] * 7), strict=True):
        assert longest / 2 <= pause <= longest + 1.2, pauses
    clock.now += 19
    guard.failed(FULL)
    assert waited_s(guard, clock) >= 10
    clock.now += 21
    guard.failed(FULL)
    assert waited_s(guard, clock) <= 2.2


def test_a_trial_that_fails_makes_the_next_one_later(store: Store, clock: Clock) -> None:
    guard = opened(store, clock)
    store.root.rename(store.root.with_name("away"))
    tries = 0
    guard.look()
    for _ in range(600):
        clock.now += 1
        tries += "No such file" in guard.look()
    assert tries == 600
    store.root.with_name("away").rename(store.root)
    clock.now += 20
    guard.look()
    assert guard.why == ""


def test_the_trial_is_as_large_as_what_failed(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with room for little: a small trial would do well each time, and the image fail again."""
    guard = opened(store, clock)
    room, real = 3 << 20, os.write

    def write(fd: int, data: bytes) -> int:
        if len(data) > room:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    image = bytes(5 << 20)
    with pytest.raises(StoreError) as raised:
        store.write(place_of("/a.jpg"), image)
    guard.failed(raised.value, len(image))
    for _ in range(100):
        clock.now += 1
        assert "quota" in guard.look()
    room = 6 << 20
    clock.now += 20
    assert guard.look() == ""
    store.write(place_of("/a.jpg"), image)


def test_a_store_that_no_waiting_mends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="--store"):
        StoreGuard(SETTINGS, Store(tmp_path / "file/store")).open()
