"""The folder of a dataset's ledger, open: lines go to the end of their session's file, whole or not at all.

The file is opened for each write: so nothing of it is held open in between, and filesystems that say only at
the end that they are full (NFS) are heard.
"""

from __future__ import annotations

import os
from contextlib import suppress

from dlconsole.workers.partial import MORE, NEW_FILE, write_all


class LedgerFolder:
    """All here raises OSError where the disk fails."""

    def __init__(self, fd: int) -> None:
        """`fd` is the folder's, and closed with this."""
        self._fd = fd
        self._found = os.fstat(fd)

    def is_same(self, found: os.stat_result) -> bool:
        """Whether that is this folder."""
        return os.path.samestat(self._found, found)

    def append(self, name: str, size_bytes: int, lines: bytes) -> None:
        """Append to a file that holds `size_bytes` of ours, or make it; after a failure it is cut back to
        them, where that can be done.
        """
        fd, size_bytes = self._open(name, size_bytes)
        try:
            write_all(fd, lines)
        except BaseException:
            with suppress(OSError):  # what stays is a torn line, which readers drop, or lines to come again
                if size_bytes:
                    os.ftruncate(fd, size_bytes)
                else:
                    os.unlink(name, dir_fd=self._fd)
            raise
        finally:
            os.close(fd)

    def _open(self, name: str, size_bytes: int) -> tuple[int, int]:
        if size_bytes:
            try:
                return os.open(name, MORE, dir_fd=self._fd), size_bytes
            except FileNotFoundError:  # somebody moved it away
                pass
        return os.open(name, NEW_FILE | os.O_APPEND, 0o666, dir_fd=self._fd), 0

    def close(self) -> None:
        os.close(self._fd)
