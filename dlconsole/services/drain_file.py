"""Appending to a file that others append to as well, so that every line is in it once.

Ours take turns by a lock on the file. A legacy drainer knows no lock: it may append at any time, so
nothing here assumes that our bytes stand where the file ended a moment before, and nothing is cut off
that is not known to be ours.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dlconsole.services.drain_folder import Intent, fsync_folder

_READ_BYTES: Final = 1 << 20


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """A descriptor to read and append, with the file's lock; the file is made where there is none."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_still(path, file):
                if not os.fstat(file).st_size:
                    fsync_folder(path.parent)
                yield file
                return
        finally:
            os.close(file)


def _is_still(path: Path, file: int) -> bool:
    """Whether nobody moved the file away while its lock was waited for."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def mend(file: int) -> None:
    """Where the last line is torn, end it: what comes next begins a line of its own."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.write(file, b"\n")


def size_of(file: int) -> int:
    """Bytes in the file."""
    return os.fstat(file).st_size


def fsync(file: int) -> None:
    """Make the file durable. Raises OSError; then this descriptor must not be asked again: it may say
    yes to what is lost.
    """
    os.fsync(file)


def holds(file: int, intent: Intent) -> bool:
    """Whether exactly the bytes of `intent` are where it says."""
    digest, at, end = hashlib.sha256(), intent.offset, intent.offset + intent.length
    while at < end:
        chunk = os.pread(file, min(_READ_BYTES, end - at), at)
        if not chunk:
            return False
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest() == intent.sha256


def write_again(file: int, offset: int, length: int) -> None:
    """Write the bytes that stand there over themselves, so that the next fsync covers them: after one that
    failed, the system holds them for written, though they may not be on the disk.
    """
    fresh = os.open(f"/proc/self/fd/{file}", os.O_RDWR | os.O_CLOEXEC)  # one that does not append
    try:
        end = offset + length
        while offset < end:
            chunk = os.pread(fresh, min(_READ_BYTES, end - offset), offset)
            if not chunk:
                return
            offset += os.pwrite(fresh, chunk, offset)
    finally:
        os.close(fresh)


def written_of(file: int, offset: int, lines: bytes) -> int:
    """How many bytes of `lines` are in the file at or behind `offset`, in whole lines. A part of the next
    line at the very end of the file is cut off. The caller's next fsync covers what is found.
    """
    size = os.fstat(file).st_size
    if size <= offset:
        return 0
    with mmap.mmap(file, size, access=mmap.ACCESS_READ) as data:
        count, at = _longest(data, offset, lines)
        rest = data[at + count :] if size - at - count < len(lines) else b""
    if rest and lines.startswith(rest, count):
        os.ftruncate(file, at + count)
    write_again(file, at, count)
    return count


def _longest(data: mmap.mmap, offset: int, lines: bytes) -> tuple[int, int]:
    """The longest run of first lines that stands together at or behind `offset`: its bytes, its place."""
    ends = [0]
    while (end := lines.find(b"\n", ends[-1])) >= 0:
        ends.append(end + 1)
    low, high, at = 0, len(ends) - 1, offset
    while low < high:
        middle = (low + high + 1) // 2
        found = data.find(lines[: ends[middle]], offset)
        if found >= 0:
            low, at = middle, found
        else:
            high = middle - 1
    return ends[low], at


def take_back(path: Path, file: int, offset: int, lines: bytes) -> bool:
    """After a write or fsync that failed: cut off what of `lines` is there, if it ends the file.

    `file` only holds the lock: a descriptor whose fsync failed is not asked again. Whether nothing of
    it is left in the file.
    """
    try:
        fresh = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not os.path.samestat(os.fstat(fresh), os.fstat(file)):
            return False
        size = os.fstat(fresh).st_size
        if size > offset:
            tail = b"" if size - offset > len(lines) else os.pread(fresh, size - offset, offset)
            if not tail or not lines.startswith(tail):
                return False
            os.ftruncate(fresh, offset)
        os.fsync(fresh)
        return True
    except OSError:
        return False
    finally:
        os.close(fresh)
