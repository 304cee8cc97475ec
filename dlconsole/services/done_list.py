"""The file of lists that are done: one path a line, as the legacy feeder keeps it in `done_part.txt`.

It speaks only for lists that Redis knows nothing of, such as those that a legacy feeder fed; where
Redis has a position, that is the truth.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dlconsole.services.manifests import Place, Remote


@dataclass(frozen=True, slots=True)
class DoneList:
    """The list of lists that are done. It need not exist."""

    path: Path

    def has(self, place: Place) -> bool:
        """Whether a list is in it, by its path as it was given or made absolute. Raises OSError.

        Never a URL: without its query, which may be secret, it would name several lists.
        """
        if isinstance(place, Remote):
            return False
        return bool({os.fsencode(place), _absolute(place)} & self._read())

    def add(self, places: Iterable[Place]) -> None:
        """Append those that it does not have, in one write, safe on disk. Raises OSError.

        A last line without its newline is ended first; a write that a full disk cuts short is taken back.
        """
        paths = [place for place in places if isinstance(place, Path)]
        if not paths:
            return
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            known = self._read()
            # A name with a newline in it cannot be listed; Redis knows its position all the same.
            new = [
                line
                for line in dict.fromkeys(map(_absolute, paths))
                if line not in known and b"\n" not in line
            ]
            if not new:
                return
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            data = b"\n" * torn + b"".join(line + b"\n" for line in new)
            written = os.write(handle, data)
            if written != len(data):
                os.ftruncate(handle, size)
                raise OSError(28, "No space left on device", str(self.path))
            os.fsync(handle)
        finally:
            os.close(handle)

    def _read(self) -> set[bytes]:
        """The lines as they stand, and absolute: those of a legacy feeder are relative to where it ran."""
        try:
            lines = {line.strip() for line in self.path.read_bytes().splitlines()} - {b""}
        except FileNotFoundError:
            return set()
        return lines | {os.path.normpath(os.path.join(os.fsencode(self.path.parent), line)) for line in lines}


def _absolute(path: Path) -> bytes:
    return os.path.abspath(os.fsencode(path))
