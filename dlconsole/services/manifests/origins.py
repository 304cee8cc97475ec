"""Where a list's bytes come from: a file, or a stream that can be read only once."""

from __future__ import annotations

import hashlib
import os
import secrets
import select
from typing import BinaryIO, Final, Protocol

from dlconsole.services.manifests.rows import CHUNK_BYTES, Idle, Stopped

_IDLE_S: Final = 0.2
_SAMPLES: Final = 18
_SAMPLE_BYTES: Final = 64 * 1024


class Origin(Protocol):
    """Bytes in their order. `id` names the content. `size` is the number of bytes, None where that is not
    known; `at` is how many were read.
    """

    id: str
    size: int | None
    at: int
    is_stream: bool

    def read(self, idle: Idle) -> bytes:
        """What comes next, at most CHUNK_BYTES; nothing at the end. Raises OSError, Stopped, Unreadable."""

    def seek(self, at: int) -> None:
        """Go on from this byte; not for a stream."""

    def is_changed(self) -> bool:
        """Whether it is another list now than when it was opened."""

    def close(self) -> None:
        """Give back what it holds."""


class FileOrigin:
    """A file. `id` survives a move, and a second file with equal content has the same: it is a digest of
    the size and of 18 pieces of 64 KiB, the first, the last, and between them in equal steps. So two lists of
    the same size that differ only between those pieces, which takes more than 1.1 MiB, are taken for one.
    """

    is_stream = False

    def __init__(self, file: BinaryIO) -> None:
        found = os.fstat(file.fileno())
        self._file = file
        self._mtime_ns = found.st_mtime_ns
        self.id = _content_id(file.fileno(), found.st_size)
        self._size = found.st_size
        self.size: int | None = found.st_size
        self.at = 0

    def fileno(self) -> int:
        """Its descriptor."""
        return self._file.fileno()

    def read(self, _idle: Idle) -> bytes:
        """See Origin."""
        data = self._file.read(min(CHUNK_BYTES, self._size - self.at))
        self.at += len(data)
        return data

    def seek(self, at: int) -> None:
        """See Origin."""
        self._file.seek(at)
        self.at = at

    def is_changed(self) -> bool:
        """See Origin."""
        found = os.fstat(self._file.fileno())
        if (found.st_size, found.st_mtime_ns) == (self._size, self._mtime_ns):
            return False
        return _content_id(self._file.fileno(), found.st_size) != self.id

    def close(self) -> None:
        """See Origin."""
        self._file.close()


class StreamOrigin:
    """Standard input or a pipe; it has another id each time."""

    is_stream = True
    size: int | None = None

    def __init__(self, file: BinaryIO, *, is_ours: bool) -> None:
        self._file = file
        self._is_ours = is_ours
        self.id = f"stream-{secrets.token_hex(8)}"
        self.at = 0

    def read(self, idle: Idle) -> bytes:
        """See Origin: what is there, not until a whole chunk is."""
        descriptor = self._file.fileno()
        while not select.select([descriptor], [], [], _IDLE_S)[0]:
            if not idle():
                raise Stopped
        data = os.read(descriptor, CHUNK_BYTES)
        self.at += len(data)
        return data

    def seek(self, at: int) -> None:
        """See Origin."""
        if at != self.at:
            raise OSError(29, "a stream cannot be read twice")

    def is_changed(self) -> bool:
        """See Origin."""
        return False

    def close(self) -> None:
        """See Origin."""
        if self._is_ours:
            self._file.close()


def _content_id(descriptor: int, size: int) -> str:
    digest = hashlib.sha256(b"%d\n" % size)
    if size <= _SAMPLES * _SAMPLE_BYTES:
        starts = list(range(0, size, _SAMPLE_BYTES))
    else:
        last = size - _SAMPLE_BYTES
        starts = [last * number // (_SAMPLES - 1) for number in range(_SAMPLES)]
    for start in starts:
        digest.update(os.pread(descriptor, _SAMPLE_BYTES, start))
    return digest.hexdigest()
