"""Unfinished files: in a folder of their session's own, below `<root>/.dlconsole-partial/`.

What a killed session leaves in its folder is swept by the next one that starts: the folder's lock says
whether its owner lives.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from typing import Final

PARTIAL: Final = ".dlconsole-partial"
"""Folder in the root that unfinished files are in."""
FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
MORE: Final = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class PartialFolder:
    """The session's own folder for unfinished files, locked for as long as the session lives."""

    def __init__(self, root_fd: int) -> None:
        base_fd = open_or_create(root_fd, PARTIAL)
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
            self.fd = os.open(self.name, FOLDER_FLAGS, dir_fd=base_fd)
        except FileNotFoundError:
            return False
        if _lock(self.fd) and os.fstat(self.fd).st_nlink:
            return True
        os.close(self.fd)
        return False

    def append(self, name: str, data: bytes | bytearray, *, begins: bool) -> None:
        """More of a file, which is opened for each piece: so nothing of it is held open in between."""
        fd = os.open(name, NEW_FILE if begins else MORE, 0o666, dir_fd=self.fd)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)

    def read(self, name: str) -> bytes:
        with open(os.open(name, _READ, dir_fd=self.fd), "rb", buffering=0) as file:
            return file.read()

    def remove(self, name: str) -> None:
        with suppress(OSError):  # what cannot be removed now goes with the folder
            os.unlink(name, dir_fd=self.fd)

    def close(self) -> None:
        _remove_folder(self._base_fd, self.name, self.fd)
        os.close(self.fd)
        os.close(self._base_fd)


def _sweep(base_fd: int) -> None:
    """Remove the folders of sessions that are gone: nobody holds their lock."""
    for name in os.listdir(base_fd):
        try:
            fd = os.open(name, FOLDER_FLAGS, dir_fd=base_fd)
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


def open_or_create(folder_fd: int, part: str) -> int:
    """A folder below an open one, made where it is missing; no link is followed."""
    try:
        return os.open(part, FOLDER_FLAGS, dir_fd=folder_fd)
    except FileNotFoundError:
        try:
            os.mkdir(part, dir_fd=folder_fd)
        except FileExistsError:  # another worker was quicker, or a link leads nowhere
            pass
        return os.open(part, FOLDER_FLAGS, dir_fd=folder_fd)


def write_all(fd: int, data: bytes | bytearray) -> None:
    """All of it, however often the system wants to be asked."""
    written = os.write(fd, data)
    if written < len(data):
        view = memoryview(data)
        while written < len(view):
            written += os.write(fd, view[written:])
