"""The store: whole files under its root, or nothing."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dlconsole.errors import BadPathError, StoreError
from dlconsole.workers.files import MISMATCHED, PARTIAL, Store, place_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    store.open()
    yield store
    store.close()


def files_in(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_a_legacy_path_is_taken_from_the_root(store: Store) -> None:
    store.write(place_of("/ds/images/a.jpg"), b"picture")
    store.write(place_of("plain/b.jpg"), b"other")
    store.write(place_of("c.jpg"), b"top")
    assert (store.root / "ds/images/a.jpg").read_bytes() == b"picture"
    assert files_in(store.root) == ["c.jpg", "ds/images/a.jpg", "plain/b.jpg"]


def test_writing_again_replaces(store: Store) -> None:
    for body in (b"first", b"second"):
        store.write(place_of("/a/b.jpg"), body)
    assert (store.root / "a/b.jpg").read_bytes() == b"second"


@pytest.mark.parametrize(
    "path",
    ["", "/", "//etc/passwd", "/a//b", "../x", "/a/../../x", "/a/./b", "/a/..", "a/", "/a/b\0c", "/a\nb", "/\x7f",
     "/" + "x" * 256, "/" + "é" * 200, "/a" * 2500, "/\ud800", f"/{PARTIAL}/x", f"/{MISMATCHED}/x"],
)  # fmt: skip
def test_paths_that_are_no_place_under_the_root_are_bad(path: str) -> None:
    with pytest.raises(BadPathError):
        place_of(path)


def test_odd_names_stay_inside(store: Store) -> None:
    for name in ("...", "..a", "a..", "-rf", "~", "$HOME", "a\\..\\b", "日本.jpg", "a b"):
        store.write(place_of(f"/d/{name}"), b"x")
        assert (store.root / "d" / name).read_bytes() == b"x"


def test_a_link_that_leads_out_is_bad_and_nothing_is_written(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (store.root / "link").symlink_to(outside)
    (store.root / "up").symlink_to("..")
    (store.root / "dangling").symlink_to(tmp_path / "nowhere")
    (store.root / "a").mkdir()
    (store.root / "a/deep").symlink_to("../link")
    for path in ("/link/x.jpg", "/up/x.jpg", "/dangling/x.jpg", "/a/deep/x.jpg", "/link/sub/x.jpg"):
        with pytest.raises(BadPathError):
            store.write(place_of(path), b"x")
    assert files_in(outside) == []
    assert not (tmp_path / "x.jpg").exists()


def test_a_link_in_place_of_the_file_is_replaced_not_followed(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"keep")
    (store.root / "x.jpg").symlink_to(secret)
    store.write(place_of("/x.jpg"), b"picture")
    assert secret.read_bytes() == b"keep"
    assert (store.root / "x.jpg").read_bytes() == b"picture"
    assert not (store.root / "x.jpg").is_symlink()


def test_a_link_that_leads_elsewhere_inside_is_followed(store: Store) -> None:
    (store.root / "real").mkdir()
    (store.root / "alias").symlink_to("real")
    store.write(place_of("/alias/new/x.jpg"), b"x")
    assert (store.root / "real/new/x.jpg").read_bytes() == b"x"


def test_a_file_in_the_way_of_a_folder_is_bad(store: Store) -> None:
    store.write(place_of("/a"), b"x")
    with pytest.raises(BadPathError):
        store.write(place_of("/a/b.jpg"), b"x")
    store.write(place_of("/d/e.jpg"), b"x")
    with pytest.raises(BadPathError):
        store.write(place_of("/d"), b"x")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_failed_write_leaves_nothing(code: int, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match=os.strerror(code)):
        store.write(place_of("/a/b.jpg"), b"x")
    monkeypatch.undo()
    assert files_in(store.root) == []
    store.write(place_of("/a/b.jpg"), b"x")


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_root_that_was_removed_is_not_made_again_and_used_once_it_is_back(
    store: Store, made_anew: bool
) -> None:
    store.write(place_of("/a/x.jpg"), b"x")
    store.check()
    away = store.root.rename(store.root.with_name("away"))
    with pytest.raises(StoreError, match="No such file"):
        store.check()
    for write in (lambda: store.write(place_of("/a/y.jpg"), b"y"), lambda: store.try_write(1)):
        with pytest.raises(StoreError, match="No such file"):
            write()
    assert not store.root.exists()
    store.root.mkdir() if made_anew else away.rename(store.root)
    store.write(place_of("/a/y.jpg"), b"y")
    store.check()
    assert files_in(store.root) == (["a/y.jpg"] if made_anew else ["a/x.jpg", "a/y.jpg"])


def test_a_root_that_was_replaced_is_noticed_and_so_is_a_file_in_its_place(store: Store) -> None:
    store.root.rename(store.root.with_name("away"))
    store.root.mkdir()
    with pytest.raises(StoreError, match="replaced"):
        store.check()
    store.root.rmdir()
    store.root.touch()
    with pytest.raises(StoreError, match="Not a directory"):
        store.write(place_of("/x.jpg"), b"x")


def test_a_store_that_failed_holds_nothing_open(store: Store) -> None:
    store.write(place_of("/a/x.jpg"), b"x")
    store.root.rename(store.root.with_name("away"))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError):
        store.check()
    assert len(os.listdir("/proc/self/fd")) == before - 4
    for _ in range(3):
        with pytest.raises(StoreError):
            store.open()
    assert len(os.listdir("/proc/self/fd")) == before - 4


def test_more_folders_than_are_kept_open(store: Store) -> None:
    for i in range(600):
        store.write(place_of(f"/{i % 256:02x}/{i}/x.jpg"), b"x")
    for i in range(600):
        store.write(place_of(f"/{i % 256:02x}/{i}/y.jpg"), b"y")
    assert len(files_in(store.root)) == 1200


def test_a_removed_folder_is_made_again(store: Store) -> None:
    store.write(place_of("/a/b/x.jpg"), b"x")
    (store.root / "a/b/x.jpg").unlink()
    (store.root / "a/b").rmdir()
    with pytest.raises(StoreError):
        store.write(place_of("/a/b/x.jpg"), b"x")
    store.write(place_of("/a/b/x.jpg"), b"x")
    assert (store.root / "a/b/x.jpg").read_bytes() == b"x"


KILLED = """
import os, sys, signal
from pathlib import Path
from dlconsole.workers.files import Store, place_of
store = Store(Path(sys.argv[1]))
real = os.write
def half(fd, data):
    real(fd, data[:100])
    os.kill(os.getpid(), signal.SIGKILL)
os.write = half
store.write(place_of("/a/x.jpg"), b"y" * 1000)
"""


def test_what_a_killed_worker_leaves_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    root = tmp_path / "store"
    living = Store(root)
    living.open()
    done = subprocess.run([sys.executable, "-c", KILLED, str(root)], check=False)
    assert done.returncode == -9
    assert not (root / "a/x.jpg").exists()
    assert len(files_in(root / PARTIAL)) == 1
    folders_before = set(os.listdir(root / PARTIAL))
    second = Store(root)
    second.open()
    assert files_in(root) == []
    assert len(folders_before - set(os.listdir(root / PARTIAL))) == 1
    living.write(place_of("/a/x.jpg"), b"z")
    assert (root / "a/x.jpg").read_bytes() == b"z"
    second.close()
    living.close()
    assert os.listdir(root / PARTIAL) == []


def test_workers_that_start_at_the_same_time_do_not_sweep_each_other_away(tmp_path: Path) -> None:
    def start_again_and_again(_: int) -> None:
        for _ in range(150):
            store = Store(tmp_path)
            store.open()
            store.close()

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(start_again_and_again, range(8)))
    assert list((tmp_path / PARTIAL).iterdir()) == []


def test_a_root_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--store"):
        Store(tmp_path / "file" / "store").open()


def test_too_many_open_files_close_folders_and_fail_nothing(store: Store) -> None:
    """Other parts of the process leave room for a few only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    store.write(place_of("/0/a.jpg"), b"x")
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 12, hard))
    try:
        for i in range(60):
            store.write(place_of(f"/{i}/b.jpg"), b"picture")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(files_in(store.root)) == 61


def test_no_more_folders_are_kept_open_than_it_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", most_open=5)
    store.open()
    before = len(os.listdir("/proc/self/fd"))
    for i in range(60):
        store.write(place_of(f"/{i}/b.jpg"), b"picture")
    assert len(os.listdir("/proc/self/fd")) <= before + 5
    store.close()
