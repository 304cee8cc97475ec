"""Sorting more than memory holds: sorted runs in temporary files, merged block by block.

The records are bytes without a newline, and no two are equal. Memory is bounded by a run and by the merge's
blocks, room on the disk by the records' size, and, beyond FAN_IN runs, by FAN_IN more of them while they are
made into one. The files have no name, so they are gone with the process, however it ends.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from dlconsole.errors import LedgerError

RUN_BYTES: Final = 32 << 20
RECORD_BYTES: Final = 41
"""What a record takes in memory besides its bytes: Python's header, and its place in a list."""
FAN_IN: Final = 128
_MERGE_BYTES: Final = 8 << 20
"""What the blocks of a merge have together."""
_LEAST_BLOCK: Final = 64 << 10
_WRITE: Final = 4096


def room(size: int, count: int, run_bytes: int = RUN_BYTES) -> int:
    """The temporary room, in bytes, that so many records take that have so many bytes together."""
    if size + count * RECORD_BYTES <= run_bytes:
        return 0
    return size + count + (FAN_IN * run_bytes if size > FAN_IN * run_bytes else 0)


class Sorter:
    """Takes records in any order and gives them back in theirs; to be closed in the end."""

    def __init__(
        self, folder: Path, run_bytes: int = RUN_BYTES, check: Callable[[], None] = lambda: None
    ) -> None:
        """`check` is called now and then where it takes long, and may raise."""
        self._folder = folder
        self._run_bytes = run_bytes
        self._check = check
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._levels: list[list[_Run]] = []

    def close(self) -> None:
        """Give the room back."""
        for runs in self._levels:
            for run in runs:
                run.close()

    def add(self, records: list[bytes]) -> None:
        """Take these. Raises LedgerError where they cannot be written."""
        self._held += records
        self._held_bytes += sum(map(len, records)) + len(records) * RECORD_BYTES
        if self._held_bytes > self._run_bytes:
            self._write_held()

    def batches(self) -> Iterator[list[bytes]]:
        """All of them, sorted, in lists of any length but zero; only once. Raises LedgerError."""
        if not self._levels:
            self._held.sort()
            held, self._held = self._held, []
            for start in range(0, len(held), _WRITE):
                yield held[start : start + _WRITE]
            return
        if self._held:
            self._write_held()
        try:
            yield from _merged([run for runs in self._levels for run in runs])
        except OSError as error:
            raise self._trouble(error) from error

    def _write_held(self) -> None:
        self._held.sort()
        held, self._held, self._held_bytes = self._held, [], 0
        self._write(0, (held[start : start + _WRITE] for start in range(0, len(held), _WRITE)))

    def _write(self, level: int, batches: Iterator[list[bytes]]) -> None:
        """A run more on this level; FAN_IN of them become one of the next."""
        if level == len(self._levels):
            self._levels.append([])
        runs = self._levels[level]
        try:
            runs.append(_Run(self._folder))
            for batch in batches:
                self._check()
                runs[-1].append(batch)
        except OSError as error:
            raise self._trouble(error) from error
        if len(runs) == FAN_IN:
            self._write(level + 1, _merged(runs))
            for run in runs:
                run.close()
            runs.clear()

    def _trouble(self, error: OSError) -> LedgerError:
        return LedgerError(
            f"{self._folder}: {error.strerror}: the temporary files of sorting go there; "
            "--temp names another folder"
        )


class _Run:
    """Sorted records in a file without a name; written first, then read from its beginning."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  (close())
        self._size = 0
        self._read = 0
        self._records: list[bytes] = []
        self._next = 0
        self._block = 0
        self._rest = b""

    def close(self) -> None:
        self._file.close()

    def append(self, records: list[bytes]) -> None:
        data = memoryview(b"\n".join([*records, b""]))
        self._size += len(data)
        while data:
            data = data[self._file.write(data) :]

    @property
    def is_read(self) -> bool:
        """Whether all of it that is left is in memory."""
        return self._read == self._size

    @property
    def is_empty(self) -> bool:
        return self.is_read and self._next == len(self._records)

    @property
    def newest(self) -> bytes:
        """The greatest record in memory."""
        return self._records[-1]

    def fill(self, block_bytes: int) -> None:
        """Read a block, where less than half of the last one is left."""
        while not self.is_read and 2 * (len(self._records) - self._next) <= self._block:
            data = self._bytes(block_bytes)
            self._read += len(data)
            lines = (self._rest + data).split(b"\n")
            self._rest = lines.pop()
            self._records = self._records[self._next :] + lines
            self._next = 0
            self._block = len(lines)

    def _bytes(self, size: int) -> bytes:
        if not self._read:
            self._file.seek(0)
        data: bytes = self._file.read(size)
        if not data:
            raise OSError(5, "a temporary file lost its end")
        return data

    def take(self, bound: bytes | None) -> list[bytes]:
        """Those in memory up to this one; None: all."""
        start = self._next
        if start == len(self._records) or (bound is not None and self._records[start] > bound):
            return []
        end = len(self._records) if bound is None else bisect_right(self._records, bound, start)
        self._next = end
        return self._records[start:end]


def _merged(runs: list[_Run]) -> Iterator[list[bytes]]:
    """All records of these runs, in order. What is not greater than the least of the newest ones in memory
    cannot be preceded by what is still to be read; sorting it is a merge, as it is made of sorted pieces.
    """
    block_bytes = max(_LEAST_BLOCK, _MERGE_BYTES // max(len(runs), 1))
    left = list(runs)
    while left:
        for run in left:
            run.fill(block_bytes)
        bound = min((run.newest for run in left if not run.is_read), default=None)
        batch: list[bytes] = []
        for run in left:
            batch += run.take(bound)
        batch.sort()
        yield batch
        left = [run for run in left if not run.is_empty]
