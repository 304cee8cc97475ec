"""Atomic writes under a root, and never outside it.

A file is written into a folder of its session's own, see `partial.py`, and renamed into place, so a half
file never bears a picture's name. Safe against `kill -9`; not against power loss (no fsync).

A nameless file (`O_TMPFILE`) would leave nothing to sweep and measures the same, but NFS and FUSE do
not have it, so it would be a second way beside this one.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from dlconsole.errors import BadPathError, SpillLost, StoreError
from dlconsole.workers.ledger_folder import LedgerFolder
from dlconsole.workers.partial import (
    FOLDER_FLAGS,
    NEW_FILE,
    PARTIAL,
    PartialFolder,
    open_or_create,
    write_all,
)
from dlconsole.workers.places import Place

P = ParamSpec("P")
T = TypeVar("T")

_TOO_MANY_OPEN: Final = frozenset({errno.EMFILE, errno.ENFILE})
_BAD_PATH: Final = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST})


@dataclass(frozen=True, slots=True)
class _Folder:
    """An open folder, and the folder that files on their way into it are written to: it must be on
    the same filesystem, which below the root a mount may change.
    """

    fd: int
    partial_fd: int


class Unfinished:
    """A body on its way into the store that is too large for memory: a file of the store's own, written
    piece by piece. It is removed when nobody holds this any more, unless it was finished before.
    """

    __slots__ = ("_store", "name", "size_bytes", "tree")

    def __init__(self, store: Store) -> None:
        self._store = store
        self.tree: _Tree | None = None
        """What the store was when this was begun; with that it ends."""
        self.name = ""
        self.size_bytes = 0

    def __len__(self) -> int:
        return self.size_bytes

    def append(self, data: bytes | bytearray) -> None:
        """Add a piece. Raises SpillLost, StoreError."""
        self._store.append(self, data)

    def read(self) -> bytes:
        """All of it. Raises SpillLost, StoreError."""
        return self._store.read(self)

    def __del__(self) -> None:
        self._store.drop(self)


class Store:
    """A folder that images are written under. Threads may share it: it does one thing at a time.

    After a failure nothing of it is held open, so that its filesystem can be unmounted, mended and
    mounted; whatever is done next opens it anew. Unfinished bodies do not survive that.
    """

    def __init__(self, root: Path, most_open: int = 512, ledger: str = "") -> None:
        """`most_open` folders are kept open, or as many as turn out to be possible. `ledger` is the folder
        for lines of outcomes, below the root; '' is none.
        """
        self.root = root
        self._most_open = most_open
        self._ledger = ledger
        self._device: int | None = None
        """The filesystem it was last opened on; None before that."""
        self._tree: _Tree | None = None
        self._lock = threading.RLock()

    def open(self) -> None:
        """Open the root, made where it is missing, and sweep what killed sessions left. Raises StoreError.

        Once it was open it is not made again: a root that is missing later may be a mount that is gone,
        whose images would fill the disk below. For the same reason another filesystem is taken for the
        store only where it has the store's own folder.
        """
        with self._lock:
            self._opened()

    def check(self) -> None:
        """Raises StoreError where the root's path leads elsewhere by now: unmounted, removed, replaced."""
        with self._lock:
            if self._tree is None:
                return
            try:
                in_place = os.path.samestat(os.stat(self.root), os.fstat(self._tree.root_fd))
            except OSError as error:
                raise self._failure(error) from error
            if not in_place:
                self.close()
                raise StoreError(f"store {self.root}: its folder was replaced or unmounted")

    def write(self, place: Place, data: bytes | bytearray) -> None:
        """Put `data` at `place`, whole or not at all, replacing what is there.

        Raises BadPathError where a link leads out of the root or a folder is in the way of the file
        or a file in the way of a folder, StoreError where the disk fails.
        """
        with self._lock:
            tree = self._opened()
            self._put(tree, place, tree.write, data)

    def begin(self) -> Unfinished:
        """For a body that is too large for memory. The disk is asked for nothing before its first piece."""
        return Unfinished(self)

    def append(self, file: Unfinished, data: bytes | bytearray) -> None:
        """Raises StoreError where the disk fails, SpillLost where the store was closed in between."""
        with self._lock:
            if not file.name and self._tree is not None:  # a body does not try whether the store is well
                file.tree, file.name = self._tree, self._tree.new_name()
            tree = self._tree_of(file)
            self._try(tree, tree.partial.append, file.name, data, begins=not file.size_bytes)
            file.size_bytes += len(data)

    def read(self, file: Unfinished) -> bytes:
        """Raises as `append` does."""
        with self._lock:
            tree = self._tree_of(file)
            return self._try(tree, tree.partial.read, file.name)

    def finish(self, place: Place, file: Unfinished) -> None:
        """Put the file at `place`, as `write` does; it is an unfinished one no more. Raises as `write` and
        `append` do.
        """
        with self._lock:
            tree = self._tree_of(file)
            self._put(tree, place, tree.finish, file.name)
            file.tree = None

    def drop(self, file: Unfinished) -> None:
        """Remove what nobody is going to finish."""
        if file.tree is None:
            return
        with self._lock:
            if file.tree is self._tree:
                self._tree.partial.remove(file.name)

    def append_lines(self, name: str, size_bytes: int, lines: bytes) -> None:
        """Append lines to a file of the ledger, which holds `size_bytes` of ours; 0: it is made. Raises
        StoreError where the disk fails: then the file ends as before, or in lines that the next file has
        again, the last maybe torn.
        """
        with self._lock:
            tree = self._opened()
            assert tree.ledger is not None  # whoever writes lines has named a folder for them
            self._try(tree, tree.ledger.append, name, size_bytes, lines)

    def try_write(self, size_bytes: int) -> None:
        """Write a file of that size and remove it. Raises StoreError where that fails."""
        with self._lock:
            tree = self._opened()
            self._try(tree, tree.try_write, size_bytes)

    def close(self) -> None:
        """Hold nothing open any more."""
        with self._lock:
            tree, self._tree = self._tree, None
            if tree is not None:
                tree.close()

    def _put(self, tree: _Tree, place: Place, act: Callable[[Place, T], None], what: T) -> None:
        try:
            tree.with_files(act, place, what)
        except OSError as error:
            if error.errno in _BAD_PATH:
                where = f"{place.folder}/{place.name}"[:200]
                raise BadPathError(f"path cannot be used: {error.strerror}: {where!r}") from error
            raise self._failure(error) from error

    def _try(self, tree: _Tree, act: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        try:
            return tree.with_files(act, *args, **options)
        except OSError as error:
            raise self._failure(error) from error

    def _tree_of(self, file: Unfinished) -> _Tree:
        if self._tree is None or file.tree is not self._tree:
            raise SpillLost(f"store {self.root}: it was closed, and the unfinished file with it")
        return self._tree

    def _opened(self) -> _Tree:
        if self._tree is None:
            try:
                if self._device is None:
                    self.root.mkdir(parents=True, exist_ok=True)
                self._tree = self._open_tree()
            except OSError as error:
                raise self._failure(error) from error
            except BadPathError as error:
                raise StoreError(
                    f"store {self.root}: its folder {self._ledger!r} cannot hold a ledger: {error}; "
                    "move away what is there, or set ledger.enabled = false (--no-ledger)"
                ) from error
        return self._tree

    def _open_tree(self) -> _Tree:
        real_root = os.path.realpath(self.root)
        root_fd = os.open(real_root, FOLDER_FLAGS)
        try:
            self._device = self._own_device(root_fd)
            return _Tree(real_root, root_fd, self._device, self._most_open, self._ledger)
        except BaseException:
            os.close(root_fd)
            raise

    def _own_device(self, root_fd: int) -> int:
        device = os.fstat(root_fd).st_dev
        if self._device in {None, device} or os.access(PARTIAL, os.F_OK, dir_fd=root_fd):
            return device
        raise StoreError(
            f"store {self.root}: another filesystem is there now, without the store's {PARTIAL}; "
            "mount the store again, or restart the workers to use this one"
        )

    def _failure(self, error: OSError) -> StoreError:
        self.close()
        hint = "; choose another with --store" if self._device is None else ""
        return StoreError(f"store {self.root}: {error.strerror}{hint}")


class _Tree:
    """The store while it is open.

    Folders are opened one part at a time without following symbolic links, and kept open, so that
    nothing that changes meanwhile can lead a write out of the root. A link that leads elsewhere
    inside the root is followed.
    """

    def __init__(self, real_root: str, root_fd: int, device: int, most_open: int, ledger: str) -> None:
        """Sweeps what killed sessions left. Raises OSError, as all here does where the disk fails, and
        BadPathError where the ledger's folder cannot be one.
        """
        self.root_fd = root_fd
        self._real_root = real_root
        self._device = device
        self._most_open = most_open
        self.partial = PartialFolder(root_fd)
        self._folders: OrderedDict[str, _Folder] = OrderedDict()
        self._count = 0
        self.ledger: LedgerFolder | None = None
        if ledger:
            self.ledger = self._open_ledger(ledger)

    def with_files(self, act: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Do something that opens a file; where there are too many open, with fewer folders of ours."""
        try:
            return act(*args, **options)
        except OSError as error:
            if error.errno not in _TOO_MANY_OPEN or not self.close_folders():
                raise
            return act(*args, **options)

    def new_name(self) -> str:
        """For an unfinished file; no other one has it, in whatever folder."""
        self._count += 1
        return f"{self.partial.name}-{self._count}.part"

    def write(self, place: Place, data: bytes | bytearray) -> None:
        folder = self._folder(place.folder)
        partial = self.new_name()
        fd = os.open(partial, NEW_FILE, 0o666, dir_fd=folder.partial_fd)
        try:
            try:
                write_all(fd, data)
            finally:
                os.close(fd)
            os.rename(partial, place.name, src_dir_fd=folder.partial_fd, dst_dir_fd=folder.fd)
        except BaseException:
            with suppress(OSError):  # what cannot be removed now is swept when the store is opened again
                os.unlink(partial, dir_fd=folder.partial_fd)
            raise

    def finish(self, place: Place, partial: str) -> None:
        """Rename a file of `partial` into place; onto another filesystem it must be copied."""
        folder = self._folder(place.folder)
        if folder.partial_fd == self.partial.fd:
            os.rename(partial, place.name, src_dir_fd=self.partial.fd, dst_dir_fd=folder.fd)
        else:
            self.write(place, self.partial.read(partial))
            self.partial.remove(partial)

    def try_write(self, size_bytes: int) -> None:
        """Not of zeros, which some filesystems store as nothing; synced, for some say only then that
        they are full.
        """
        fd = os.open("trial", NEW_FILE, 0o666, dir_fd=self.partial.fd)
        try:
            try:
                write_all(fd, os.urandom(size_bytes))
                os.fsync(fd)
            finally:
                os.close(fd)
        finally:
            os.unlink("trial", dir_fd=self.partial.fd)

    def close_folders(self) -> bool:
        """There are too many open files: keep none of the folders open, and fewer from now on. Whether that
        makes room.
        """
        count = len(self._folders)
        for folder in self._folders.values():
            os.close(folder.fd)
        self._folders.clear()
        self._most_open = max(1, count // 2)
        return count > 0

    def close(self) -> None:
        self.close_folders()
        if self.ledger is not None:
            self.ledger.close()
        self.partial.close()
        os.close(self.root_fd)

    def _open_ledger(self, folder: str) -> LedgerFolder:
        try:
            return LedgerFolder(self._open_folder(folder))
        except (OSError, BadPathError) as error:
            self.partial.close()
            if isinstance(error, OSError) and error.errno in _BAD_PATH:
                raise BadPathError(error.strerror) from error
            raise

    def _folder(self, path: str) -> _Folder:
        folder = self._folders.get(path)
        if folder is not None:
            self._folders.move_to_end(path)
            return folder
        fd = self._open_folder(path)
        found = os.fstat(fd)
        if self.ledger is not None and self.ledger.is_same(found):  # by a link: the path itself was checked
            os.close(fd)
            raise BadPathError(f"a symbolic link leads into the ledger's folder: {path[:200]!r}")
        same_device = found.st_dev == self._device
        folder = self._folders[path] = _Folder(fd, self.partial.fd if same_device else fd)
        if len(self._folders) > self._most_open:
            os.close(self._folders.popitem(last=False)[1].fd)
        return folder

    def _open_folder(self, folder: str) -> int:
        """Open, and create where missing, each part below the last."""
        fd = os.dup(self.root_fd)
        walked = ""
        for part in folder.split("/") if folder else []:
            walked = f"{walked}/{part}" if walked else part
            try:
                below = open_or_create(fd, part)
            except OSError as error:
                if error.errno not in {errno.ELOOP, errno.ENOTDIR} or not _is_link(fd, part):
                    raise
                below = self._open_link_target(walked)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _open_link_target(self, walked: str) -> int:
        """The folder that a symbolic link inside the root leads to; outside it is refused.

        The resolved path has no links left, so it is walked as strictly as any other.
        """
        target = os.path.realpath(os.path.join(self._real_root, walked))
        inside = os.path.relpath(target, self._real_root)
        if inside == ".." or inside.startswith("../"):
            raise BadPathError(f"a symbolic link leads out of the store: {walked[:200]!r}")
        if inside == ".":
            return os.dup(self.root_fd)
        fd = os.dup(self.root_fd)
        for part in inside.split("/"):
            try:
                below = os.open(part, FOLDER_FLAGS, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd


def _is_link(folder_fd: int, part: str) -> bool:
    try:
        os.readlink(part, dir_fd=folder_fd)
    except OSError:
        return False
    return True
