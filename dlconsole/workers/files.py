"""Atomic writes under a root, and never outside it.

A file is written into a folder of its session's own below `<root>/.dlconsole-partial/` and renamed
into place, so a half file never bears a picture's name. What a killed session leaves in its folder is
swept by the next one that starts: the folder's lock says whether its owner lives. Safe against
`kill -9`; not against power loss (no fsync).

A nameless file (`O_TMPFILE`) would leave nothing to sweep and measures the same, but NFS and FUSE do
not have it, so it would be a second way beside this one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from dlconsole.errors import BadPathError, StoreError

PARTIAL: Final = ".dlconsole-partial"
"""Folder in the root that unfinished files are in."""
MISMATCHED: Final = ".dlconsole-mismatched"
"""Folder in the root for bodies that are not what their task's hash says, where they are to be kept."""
MAX_PATH_BYTES: Final = 4000
MAX_NAME_BYTES: Final = 255
_NO_PARTS: Final = frozenset({"", ".", ".."})
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
_TOO_MANY_OPEN: Final = frozenset({errno.EMFILE, errno.ENFILE})
_BAD_PATH: Final = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST})


class Place(NamedTuple):
    """Where a file goes: a folder below the root ('' is the root) and a name in it; both checked."""

    folder: str
    name: str


def place_of(path: str) -> Place:
    """The place of a task's path under the store's root; one leading slash is the root.

    Raises BadPathError for `.`, `..` and empty parts (so also `//etc`), control characters, NUL,
    names above 255 bytes, text that is no valid UTF-8, and dlconsole's own folders.
    """
    relative = path.removeprefix("/")
    parts = relative.split("/")
    if parts[0] in {PARTIAL, MISMATCHED}:
        raise BadPathError(f"path is in dlconsole's own folder: {path[:200]!r}")
    if not _NO_PARTS.isdisjoint(parts):
        raise BadPathError(f"path has an empty, '.' or '..' part: {path[:200]!r}")
    if not relative.isascii() or not relative.isprintable():
        _check_characters(path, relative, parts)
    elif len(relative) > MAX_NAME_BYTES and (
        len(relative) > MAX_PATH_BYTES or max(map(len, parts)) > MAX_NAME_BYTES
    ):
        raise BadPathError(f"path is too long: {path[:200]!r}…")
    return Place("/".join(parts[:-1]), parts[-1])


def _check_characters(path: str, relative: str, parts: list[str]) -> None:
    if any(c < " " or c == "\x7f" for c in relative):
        raise BadPathError(f"path has a control character: {path[:200]!r}")
    try:
        too_long = len(relative.encode()) > MAX_PATH_BYTES
        too_long = too_long or max(len(part.encode()) for part in parts) > MAX_NAME_BYTES
    except UnicodeEncodeError:
        raise BadPathError(f"path is not valid Unicode: {path[:200]!r}") from None
    if too_long:
        raise BadPathError(f"path is too long: {path[:200]!r}…")


@dataclass(frozen=True, slots=True)
class _Folder:
    """An open folder, and the folder that files on their way into it are written to: it must be on
    the same filesystem, which below the root a mount may change.
    """

    fd: int
    partial_fd: int


class Store:
    """A folder that images are written under. Not thread-safe.

    After a failure nothing of it is held open, so that its filesystem can be unmounted, mended and
    mounted; whatever is done next opens it anew.
    """

    def __init__(self, root: Path, most_open: int = 512) -> None:
        """`most_open` folders are kept open, or as many as turn out to be possible."""
        self.root = root
        self._most_open = most_open
        self._device: int | None = None
        """The filesystem it was last opened on; None before that."""
        self._tree: _Tree | None = None

    def open(self) -> None:
        """Open the root, made where it is missing, and sweep what killed sessions left. Raises StoreError.

        Once it was open it is not made again: a root that is missing later may be a mount that is gone,
        whose images would fill the disk below. For the same reason another filesystem is taken for the
        store only where it has the store's own folder.
        """
        self._opened()

    def check(self) -> None:
        """Raises StoreError where the root's path leads elsewhere by now: unmounted, removed, replaced."""
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
        tree = self._opened()
        try:
            try:
                tree.write(place, data)
            except OSError as error:
                if error.errno not in _TOO_MANY_OPEN or not tree.close_folders():
                    raise
                tree.write(place, data)
        except OSError as error:
            if error.errno in _BAD_PATH:
                where = f"{place.folder}/{place.name}"[:200]
                raise BadPathError(f"path cannot be used: {error.strerror}: {where!r}") from error
            raise self._failure(error) from error

    def try_write(self, size_bytes: int) -> None:
        """Write a file of that size and remove it. Raises StoreError where that fails."""
        tree = self._opened()
        try:
            tree.try_write(size_bytes)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Hold nothing open any more."""
        if self._tree is not None:
            self._tree.close()
            self._tree = None

    def _opened(self) -> _Tree:
        if self._tree is None:
            try:
                if self._device is None:
                    self.root.mkdir(parents=True, exist_ok=True)
                self._tree = self._open_tree()
            except OSError as error:
                raise self._failure(error) from error
        return self._tree

    def _open_tree(self) -> _Tree:
        real_root = os.path.realpath(self.root)
        root_fd = os.open(real_root, _FOLDER_FLAGS)
        try:
            self._device = self._own_device(root_fd)
            return _Tree(real_root, root_fd, self._device, self._most_open)
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

    def __init__(self, real_root: str, root_fd: int, device: int, most_open: int) -> None:
        """Sweeps what killed sessions left. Raises OSError, as all here does where the disk fails."""
        self.root_fd = root_fd
        self._real_root = real_root
        self._device = device
        self._most_open = most_open
        self._partial = _PartialFolder(root_fd)
        self._folders: OrderedDict[str, _Folder] = OrderedDict()
        self._count = 0

    def write(self, place: Place, data: bytes | bytearray) -> None:
        folder = self._folder(place.folder)
        self._count += 1
        partial = f"{self._partial.name}-{self._count}.part"
        fd = os.open(partial, _NEW_FILE, 0o666, dir_fd=folder.partial_fd)
        try:
            try:
                _write_all(fd, data)
            finally:
                os.close(fd)
            os.rename(partial, place.name, src_dir_fd=folder.partial_fd, dst_dir_fd=folder.fd)
        except BaseException:
            with suppress(OSError):  # what cannot be removed now is swept when the store is opened again
                os.unlink(partial, dir_fd=folder.partial_fd)
            raise

    def try_write(self, size_bytes: int) -> None:
        """Not of zeros, which some filesystems store as nothing; synced, for some say only then that
        they are full.
        """
        fd = os.open("trial", _NEW_FILE, 0o666, dir_fd=self._partial.fd)
        try:
            try:
                _write_all(fd, os.urandom(size_bytes))
                os.fsync(fd)
            finally:
                os.close(fd)
        finally:
            os.unlink("trial", dir_fd=self._partial.fd)

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
        self._partial.close()
        os.close(self.root_fd)

    def _folder(self, path: str) -> _Folder:
        folder = self._folders.get(path)
        if folder is not None:
            self._folders.move_to_end(path)
            return folder
        fd = self._open_folder(path)
        same_device = os.fstat(fd).st_dev == self._device
        folder = self._folders[path] = _Folder(fd, self._partial.fd if same_device else fd)
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
                below = _open_or_create(fd, part)
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
                below = os.open(part, _FOLDER_FLAGS, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd


class _PartialFolder:
    """The session's own folder for unfinished files, locked for as long as the session lives."""

    def __init__(self, root_fd: int) -> None:
        base_fd = _open_or_create(root_fd, PARTIAL)
        try:
            _sweep(base_fd)
            # Another worker that starts may sweep the folder before it is opened, or before it is locked.
            while not self._make(base_fd):
                pass
        except BaseException:
            os.close(base_fd)
            raise
        self._base_fd = base_fd

    def _make(self, base_fd: int) -> bool:
        self.name = secrets.token_hex(8)
        os.mkdir(self.name, dir_fd=base_fd)
        try:
            self.fd = os.open(self.name, _FOLDER_FLAGS, dir_fd=base_fd)
        except FileNotFoundError:
            return False
        if _lock(self.fd) and os.fstat(self.fd).st_nlink:
            return True
        os.close(self.fd)
        return False

    def close(self) -> None:
        _remove_folder(self._base_fd, self.name, self.fd)
        os.close(self.fd)
        os.close(self._base_fd)


def _sweep(base_fd: int) -> None:
    """Remove the folders of sessions that are gone: nobody holds their lock."""
    for name in os.listdir(base_fd):
        try:
            fd = os.open(name, _FOLDER_FLAGS, dir_fd=base_fd)
        except OSError:  # no folder, or swept by another worker meanwhile
            continue
        try:
            if _lock(fd):
                _remove_folder(base_fd, name, fd)
        finally:
            os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_folder(base_fd: int, name: str, fd: int) -> None:
    with suppress(OSError):  # what cannot be removed now is swept when a store is opened next
        for file in os.listdir(fd):
            os.unlink(file, dir_fd=fd)
        os.rmdir(name, dir_fd=base_fd)


def _open_or_create(folder_fd: int, part: str) -> int:
    try:
        return os.open(part, _FOLDER_FLAGS, dir_fd=folder_fd)
    except FileNotFoundError:
        try:
            os.mkdir(part, dir_fd=folder_fd)
        except FileExistsError:  # another worker was quicker, or a link leads nowhere
            pass
        return os.open(part, _FOLDER_FLAGS, dir_fd=folder_fd)


def _is_link(folder_fd: int, part: str) -> bool:
    try:
        os.readlink(part, dir_fd=folder_fd)
    except OSError:
        return False
    return True


def _write_all(fd: int, data: bytes | bytearray) -> None:
    written = os.write(fd, data)
    if written < len(data):
        view = memoryview(data)
        while written < len(view):
            written += os.write(fd, view[written:])
