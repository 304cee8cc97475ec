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

from dlconsole.errors import BadPathError, SpillLost, StoreError
from dlconsole.workers.files import PARTIAL, Store
from dlconsole.workers.places import MISMATCHED, place_of


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
from dlconsole.workers.files import Store
from dlconsole.workers.places import place_of
store = Store(Path(sys.argv[1]))
real = os.write
def half(fd, data):
    real(fd, data[:100])
    os.kill(os.getpid(), signal.SIGKILL)
os.write = half
if sys.argv[2] == "small":
    store.write(place_of("/a/x.jpg"), b"y" * 1000)
else:
    store.open()
    store.begin().append(b"y" * 1000)
"""


@pytest.mark.parametrize("body", ["small", "large"])
def test_what_a_killed_worker_leaves_is_swept_and_a_living_ones_is_not(body: str, tmp_path: Path) -> None:
    root = tmp_path / "store"
    living = Store(root)
    living.open()
    unfinished = living.begin()
    unfinished.append(b"of the living")
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), body], check=False)
    assert done.returncode == -9
    assert not (root / "a/x.jpg").exists()
    assert len(files_in(root / PARTIAL)) == 2
    folders_before = set(os.listdir(root / PARTIAL))
    second = Store(root)
    second.open()
    assert len(files_in(root)) == 1 and unfinished.read() == b"of the living"
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


def test_an_unfinished_file_is_renamed_not_copied(store: Store) -> None:
    file = store.begin()
    assert files_in(store.root) == []
    file.append(b"first ")
    file.append(bytearray(b"second"))
    assert len(file) == 12 and file.read() == b"first second"
    (partial,) = (path for path in store.root.rglob("*.part"))
    inode = partial.stat().st_ino
    store.write(place_of("/a/b.jpg"), b"old")
    store.finish(place_of("/a/b.jpg"), file)
    del file
    assert files_in(store.root) == ["a/b.jpg"]
    assert (store.root / "a/b.jpg").read_bytes() == b"first second"
    assert (store.root / "a/b.jpg").stat().st_ino == inode


def test_an_unfinished_file_that_nobody_holds_is_removed_and_holds_nothing_open(store: Store) -> None:
    before = len(os.listdir("/proc/self/fd"))
    files = [store.begin() for _ in range(50)]
    for file in files:
        file.append(b"x")
    assert len(files_in(store.root)) == 50
    assert len(os.listdir("/proc/self/fd")) == before
    del files, file
    assert files_in(store.root) == []


def test_an_unfinished_file_is_for_another_place_when_its_own_is_bad(store: Store) -> None:
    store.write(place_of("/a"), b"x")
    file = store.begin()
    file.append(b"y")
    with pytest.raises(BadPathError):
        store.finish(place_of("/a/b.jpg"), file)
    store.finish(place_of("/b.jpg"), file)
    assert files_in(store.root) == ["a", "b.jpg"]


def test_a_failed_piece_costs_all_unfinished_files_and_no_later_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that went with the store says nothing of how the store is now."""
    lost, failed = store.begin(), store.begin()
    lost.append(b"x")
    failed.append(b"x")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="No space"):
        failed.append(b"y")
    monkeypatch.undo()
    assert files_in(store.root) == []
    for _ in range(2):
        for use in (lambda: lost.append(b"y"), lost.read, lambda: store.finish(place_of("/b.jpg"), lost)):
            with pytest.raises(SpillLost):
                use()
        with pytest.raises(SpillLost):
            store.begin().append(b"x")  # while the store is closed: it is not for a body to open it
        store.open()
        kept = store.begin()
        kept.append(b"z")
        with pytest.raises(SpillLost):
            lost.append(b"y")
        assert kept.read() == b"z"
        store.close()


def test_an_unfinished_file_is_copied_to_another_filesystem(store: Store) -> None:
    (store.root / "other").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(store.root / "other")]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a filesystem needs root")
    try:
        file = store.begin()
        file.append(b"picture")
        store.finish(place_of("/other/a.jpg"), file)
        assert files_in(store.root) == ["other/a.jpg"]
        assert (store.root / "other/a.jpg").read_bytes() == b"picture"
        store.close()
    finally:
        subprocess.run(["umount", "--lazy", str(store.root / "other")], check=True)


def test_threads_write_unfinished_files_while_the_store_is_at_work(store: Store) -> None:
    def fetch(number: int) -> None:
        for _ in range(30):
            file = store.begin()
            for piece in range(10):
                file.append(bytes([number, piece]) * 500)
            if number % 2:
                store.finish(place_of(f"/{number}.jpg"), file)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(fetch, number) for number in range(8)]:
            done.result()
    assert files_in(store.root) == ["1.jpg", "3.jpg", "5.jpg", "7.jpg"]
    for number in (1, 3, 5, 7):
        wanted = b"".join(bytes([number, piece]) * 500 for piece in range(10))
        assert (store.root / f"{number}.jpg").read_bytes() == wanted
